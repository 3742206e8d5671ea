"""Nothing but the dense conversions allocates the dense tensor, and the cost in each side is linear."""

import math

import pytest
import torch

from tenfold.manifolds import (
    FixedRankManifold,
    HierarchicalTuckerManifold,
    TensorTrainManifold,
    TuckerManifold,
)
from tenfold.testing import CHECKS, Status, peak
from tenfold.testing.memory import low_rank_operations

LARGE = [
    TuckerManifold((60, 60, 60), 3),
    TuckerManifold((60, 60, 5, 5), (3, 3), modes=(0, 1)),
    FixedRankManifold((300, 200), 3),
    TensorTrainManifold((60, 60, 60), 3),
    TensorTrainManifold((8, 8, 8, 8, 8, 8), 3, rows=3),
    HierarchicalTuckerManifold((60, 60, 60), 3),
    HierarchicalTuckerManifold((12, 12, 12, 12, 12), 3),
]


@pytest.mark.parametrize("manifold", LARGE, ids=str)
@pytest.mark.parametrize("lifted", [False, True])
def test_no_operation_allocates_the_dense_tensor(manifold, lifted):
    manifold = manifold.lifted() if lifted else manifold
    x = manifold.random(generator=torch.Generator().manual_seed(0))
    # Twice the rank along every axis of every factor, and a second copy for concatenation.
    allowed = 2 * 2 ** max(map(len, manifold.factor_shapes)) * manifold.size
    assert allowed < manifold.dense_size
    for name, action in low_rank_operations(manifold, x).items():
        assert peak(action) <= allowed, name


@pytest.mark.parametrize("manifold", LARGE[:4], ids=str)
def test_the_kit_measures_it(manifold):
    assert CHECKS["G6"](manifold).status is Status.PASSED


def test_the_probe_sees_what_is_allocated():
    assert peak(lambda: torch.zeros(30, 40)) == 1200
    assert peak(lambda: torch.zeros(5).expand(1000, 5)) == 5
    assert peak(lambda: (torch.zeros(30) + torch.zeros(40, 1)).sum()) == 1200
    manifold = LARGE[0]
    x = manifold.random()
    assert peak(lambda: manifold.to_dense(x)) >= manifold.dense_size
    assert peak(lambda: manifold.project_dense(x, torch.zeros(manifold.shape))) >= manifold.dense_size


@pytest.mark.parametrize("sides", [1, 2, 3])
def test_the_largest_array_grows_linearly_in_a_side(sides):
    def largest(n):
        shape = (n,) * sides + (8,) * (3 - sides)
        manifold = TuckerManifold(shape, 4)
        return max(peak(action) for action in low_rank_operations(manifold, manifold.random()).values())

    sizes = [256, 1024, 4096]
    peaks = [largest(n) for n in sizes]
    slope = math.log(peaks[-1] / peaks[0]) / math.log(sizes[-1] / sizes[0])
    assert slope <= 1.15
