"""Every format through the kit: at least 200 instances per property in the default run.

An example of hypothesis is one structure and a batch of seven points on average (up to twelve), so 30
examples are about 200 points. ``pytest -m deep`` draws 750 examples per property, about 5,000 points,
and others in every run.
"""

from typing import ClassVar

import pytest
import torch

from tenfold.testing import CHECKS, LowRankManifoldTestCase, strategies

# The memory probe needs tensors that are large against their factors: see test_memory.
SMALL = tuple(id for id in CHECKS if id != "G6")


class Kit(LowRankManifoldTestCase):
    examples = 30
    checks = SMALL


class TestTucker(Kit):
    manifolds = strategies.tucker_manifolds()

    def to_dense(self, manifold, x):
        core, *factors = manifold.unpack_tensor(x)
        ranks, sides = "abcde"[: len(factors)], "ijklm"[: len(factors)]
        terms = ",".join(f"...{i}{a}" for i, a in zip(sides, ranks, strict=True))
        return torch.einsum(f"...{ranks},{terms}->...{sides}", core, *factors)


class TestPartialTucker(Kit):
    manifolds = strategies.partial_tucker_manifolds()


class TestFixedRank(Kit):
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
    manifolds = strategies.tensor_train_matrix_manifolds()


class TestHierarchicalTucker(Kit):
    manifolds = strategies.hierarchical_tucker_manifolds()


class TestLifted(Kit):
    """Manifolds whose forward pass returns isometric coordinates for gradients."""

    manifolds = strategies.low_rank_manifolds().map(lambda manifold: manifold.lifted())
    checks: ClassVar = ("J4", "J6", "R7", "R8", "G1", "G2", "G3", "G4", "G5", "G8")


@pytest.mark.deep
class TestDeep(LowRankManifoldTestCase):
    manifolds = strategies.low_rank_manifolds()
    examples = 750
    reproducible: ClassVar[bool] = False
    checks = SMALL
