"""Retractions that differ in how they make bases orthonormal, behind one method."""

import math

import pytest
import torch

from tenfold.linalg import Orthonormalization
from tenfold.manifolds import FixedRankManifold, TensorTrainManifold, TuckerManifold
from tenfold.testing import LowRankManifoldTestCase, strategies
from tests.optim.problems import generator

MANIFOLDS = (
    TuckerManifold((7, 6, 5), (3, 2, 3)),
    TuckerManifold((6, 5, 3, 3), (3, 2), modes=(0, 1)),
    FixedRankManifold((8, 6), 3),
    TensorTrainManifold((5, 4, 6), (3, 3)),
)
NAMES = [method.value for method in Orthonormalization]
RETRACTIONS = tuple(f"R{k}" for k in range(1, 10))


def point_and_tangent(manifold, scale=1.0):
    draw = generator(3)
    x = manifold.random(dtype=torch.float64, generator=draw)
    u = manifold.proju(x, torch.randn(manifold.size, dtype=torch.float64, generator=draw))
    return x, scale * u / manifold.norm(x, u)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
@pytest.mark.parametrize("damping", [None, 0.1])
def test_all_ways_are_one_map(manifold, name, damping):
    x, u = point_and_tangent(manifold)
    other = manifold.with_retraction(name)
    known = {} if damping is None else {"frame": manifold.damped_frame(x, damping)}
    y = other.retr(x, u, **known)
    assert other.check_point_on_manifold(y, atol=1e-10, rtol=0)
    torch.testing.assert_close(manifold.to_dense(y), manifold.to_dense(manifold.retr(x, u, **known)))


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_hosvd_agrees_to_second_order(manifold):
    other = manifold.with_retraction("hosvd")
    distances = []
    for t in (1e-2, 1e-3):
        x, u = point_and_tangent(manifold, t)
        y = other.retr(x, u)
        assert other.check_point_on_manifold(y)
        distances.append((manifold.to_dense(y) - manifold.to_dense(manifold.retr(x, u))).norm().item())
    assert math.log10(distances[0] / distances[1]) > 2.8
    assert distances[0] > 1e-12


@pytest.mark.parametrize("name", ["qr", "cholesky-qr3", "polar", "newton-schulz"])
@pytest.mark.parametrize("length", [1e2, 1e4])
def test_long_damped_steps_stay_orthonormal(name, length):
    """Where one Cholesky factor does not suffice."""
    manifold = TuckerManifold((8, 7, 6), (3, 3, 3)).with_retraction(name)
    x = manifold.random(generator=generator(0))
    u = manifold.proju(x, torch.randn(manifold.size, generator=generator(1)))
    y = manifold.retr(x, length * u / manifold.norm(x, u), frame=manifold.damped_frame(x, 0.1))
    assert manifold.check_point_on_manifold(y, atol=1e-5, rtol=0)


def test_the_choice_stays_with_the_manifold():
    manifold = MANIFOLDS[0].with_retraction("polar")
    assert manifold.retraction == manifold.with_rank(2).retraction == manifold.lifted().retraction == "polar"
    assert manifold != MANIFOLDS[0]
    assert manifold.with_retraction(None) == MANIFOLDS[0]
    assert MANIFOLDS[0].with_retraction("hosvd").with_rank(2).retraction == "hosvd"
    with pytest.raises(ValueError, match="is not a valid Orthonormalization"):
        manifold.with_retraction("best")


class Retracting(LowRankManifoldTestCase):
    examples = 12
    checks = RETRACTIONS


class TestCholeskyQR3(Retracting):
    checks = tuple(id for id in RETRACTIONS if id != "R7")  # at singular points there is no Cholesky factor
    manifolds = strategies.tucker_manifolds().map(lambda m: m.with_retraction("cholesky-qr3"))


class TestPolar(Retracting):
    manifolds = strategies.tensor_train_manifolds().map(lambda m: m.with_retraction("polar"))


class TestHOSVD(Retracting):
    manifolds = strategies.tucker_manifolds().map(lambda m: m.with_retraction("hosvd"))
