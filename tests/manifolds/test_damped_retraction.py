"""The retraction made of products and Cholesky factors, through the kit: its order, and where it ends."""

import pytest
import torch

from tenfold.manifolds import (
    FixedRankManifold,
    HierarchicalTuckerManifold,
    TensorTrainManifold,
    TuckerManifold,
)
from tenfold.testing import CHECKS, Status, check_manifold


class Damped:
    """Takes the damped retraction, at damping 0, for its own."""

    retraction_order = 1

    def retr(self, x, u, *, frame=None):
        return super().retr(x, u, frame=self.damped_frame(x, 0.0))


class DampedTucker(Damped, TuckerManifold):
    pass


class DampedTrain(Damped, TensorTrainManifold):
    pass


class DampedTree(Damped, HierarchicalTuckerManifold):
    pass


class DampedMatrix(Damped, FixedRankManifold):
    pass


MANIFOLDS = [
    DampedTucker((5, 4, 3), (3, 2, 2)),
    DampedTrain((3, 4, 3, 2), 2),
    DampedTree((3, 3, 3, 2), 2),
    DampedMatrix((5, 4), 2),
]


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=lambda m: m.name)
def test_it_is_a_first_order_retraction(manifold):
    report = check_manifold(manifold, checks=["R1", "R3", "R5", "R8", "V6", "V7", "G2"], examples=3)
    assert report.ok, report
    assert report["R3"].slope == pytest.approx(2.0, abs=0.1)
    assert CHECKS["R2"](manifold).status is Status.PASSED


def rank_one_step(length):
    manifold = TuckerManifold((20, 20, 20), 5)
    generator = torch.Generator().manual_seed(0)
    x = manifold.random(generator=generator)
    blocks = [torch.zeros_like(block) for block in manifold.unpack_tensor(x)]
    blocks[1] = torch.randn(20, 1, generator=generator) @ torch.randn(1, 5, generator=generator)
    u = manifold.proju(x, manifold.pack_point(*blocks))
    u = length * u * manifold.to_dense(x).norm() / u.norm()
    return manifold, manifold.retr(x, u, frame=manifold.damped_frame(x, 0.05))


@pytest.mark.parametrize("length", [0.01, 0.1, 1.0])
def test_steps_up_to_the_size_of_the_tensor_keep_the_factors_orthonormal(length):
    manifold, y = rank_one_step(length)
    assert manifold.check_point_on_manifold(y, atol=5e-6, rtol=0.0)


@pytest.mark.xfail(
    reason="the Gram matrix I + E^T E of a long step of low rank has the condition number 1 + |E|^2: one "
    "Cholesky-QR loses |E|^2 eps of orthogonality, and fails from |E| = 1 / sqrt(eps) on"
)
@pytest.mark.parametrize("length", [1e2, 1e4])
def test_long_steps_keep_the_factors_orthonormal(length):
    manifold, y = rank_one_step(length)
    assert manifold.check_point_on_manifold(y, atol=5e-6, rtol=0.0)


@pytest.mark.parametrize("damping", [-0.1, float("nan")])
def test_damping_below_zero_is_refused(damping):
    manifold = MANIFOLDS[0]
    with pytest.raises(ValueError, match="damping must not be negative"):
        manifold.damped_frame(manifold.random(), damping)
