"""Every format through the kit: 200 examples per property and format in the default run.

An example is one manifold (shape and ranks) with one batch of points on it, their type, conditioning and
seed; it counts for a property only if the property was measured on it and held. ``pytest -m deep`` measures
each property on 5,000 examples, shared between the formats, and on others in every run.
"""

from typing import ClassVar

import pytest
import torch

from tenfold.testing import CHECKS, LowRankManifoldTestCase, strategies

# The memory probe needs tensors that are large against their factors: see test_memory.
SMALL = tuple(id for id in CHECKS if id != "G6")


class Counted(LowRankManifoldTestCase):
    checks = SMALL

    def test_property(self, id):
        self.measured(id)

    def measured(self, id):
        measured, _ = self.measure(id)
        assert len({sample.key for sample in measured}) == self.examples
        return {sample.manifold for sample in measured}


class Kit(Counted):
    examples = 200
    orders = (2, 3, 4, 5)

    def test_property(self, id):
        manifolds = self.measured(id)
        assert {len(m.shape) for m in manifolds} >= {*self.orders}
        assert any(max(m.shape) > max(m._ranks, default=0) == 1 for m in manifolds)
        assert any(m.rank == m.full_rank and max(m._ranks, default=0) > 1 for m in manifolds)
        assert any(set(m._ranks) & set(m.shape) - {1} for m in manifolds)


class TestTucker(Kit):
    manifolds = strategies.tucker_manifolds()

    def to_dense(self, manifold, x):
        dense, *factors = manifold.unpack_tensor(x)
        batch, lead = x.shape[:-1], x.ndim - 1
        for factor in factors:  # contract the first axis of the core, append its mode
            rest = dense.shape[lead + 1 :]
            flat = dense.reshape(*batch, dense.shape[lead], -1)
            dense = torch.einsum("...ar,...ia->...ri", flat, factor).reshape(*batch, *rest, factor.shape[-2])
        return dense


class TestPartialTucker(Kit):
    manifolds = strategies.partial_tucker_manifolds()


class TestFixedRank(Kit):
    orders = (2,)
    manifolds = strategies.fixed_rank_manifolds()

    def to_dense(self, manifold, x):
        s, u, v = manifold.unpack_tensor(x)
        return torch.einsum("...ir,...rs,...js->...ij", u, s, v)


class TestTensorTrain(Kit):
    manifolds = strategies.tensor_train_manifolds()

    def to_dense(self, manifold, x):
        first, *rest = manifold.unpack_tensor(x)
        dense, lead = first, x.ndim - 1
        for core in rest:
            flat = dense.reshape(*x.shape[:-1], -1, core.shape[lead])
            dense = torch.einsum("...ar,...rb->...ab", flat, core.reshape(*core.shape[: lead + 1], -1))
        return dense.reshape(*x.shape[:-1], *manifold.shape)


class TestTensorTrainMatrix(Kit):
    orders = (4, 6)
    manifolds = strategies.tensor_train_matrix_manifolds()


class TestHierarchicalTucker(Kit):
    manifolds = strategies.hierarchical_tucker_manifolds()


class TestLifted(Kit):
    """Manifolds whose forward pass returns isometric coordinates for gradients."""

    manifolds = strategies.low_rank_manifolds().map(lambda manifold: manifold.lifted())
    checks: ClassVar = ("J4", "J6", "R7", "R8", "G1", "G2", "G3", "G4", "G5", "G8")


@pytest.mark.deep
class TestDeep(Counted):
    manifolds = strategies.low_rank_manifolds()
    examples = 5_000
    reproducible: ClassVar[bool] = False
