"""Contraction of a low-rank tensor with data."""

import pytest
import torch

from tenfold.manifolds import (
    FixedRankManifold,
    HierarchicalTuckerManifold,
    TensorTrainManifold,
    TuckerManifold,
)
from tenfold.nn import Linear, contract

MANIFOLDS = {
    "matrix": FixedRankManifold((4, 5), 2),
    "tucker": TuckerManifold((4, 5, 6), (2, 3, 2)),
    "partial": TuckerManifold((4, 5, 3, 2), (2, 3), modes=(0, 1)),
    "train": TensorTrainManifold((3, 4, 5, 2), 2),
    "train matrix": TensorTrainManifold((3, 4, 5, 2), 2, rows=2),
    "vector": TensorTrainManifold((4,), ()),
    "hierarchical": HierarchicalTuckerManifold((3, 4, 2, 5), 2),
}


@pytest.mark.parametrize("lifted", [False, True])
@pytest.mark.parametrize("batch", [(), (7,), (2, 3), (0,)])
@pytest.mark.parametrize("name", MANIFOLDS)
def test_equals_the_dense_contraction(name, batch, lifted):
    manifold = MANIFOLDS[name].lifted() if lifted else MANIFOLDS[name]
    x = manifold.origin(dtype=torch.float64).requires_grad_()
    order = len(manifold.shape)
    dense = MANIFOLDS[name].to_dense(x.detach())
    for modes in [(), (order - 1,), tuple(range(order)), tuple(range(order))[::-2]]:
        data = torch.randn((*batch, *(manifold.shape[m] for m in modes)), dtype=torch.float64)
        axes = (list(range(len(batch), data.ndim)), list(modes))
        expected = torch.tensordot(data, dense, axes) if modes or batch else data * dense
        torch.testing.assert_close(contract(manifold, x, data, modes), expected)
    contract(manifold, x, data, modes).sum().backward()
    assert x.grad.shape == x.shape


def test_the_dense_matrix_is_not_formed_for_few_rows():
    manifold = TensorTrainManifold((16, 16, 16, 16), 2, rows=2)
    x, data = manifold.origin(), torch.randn(3, 16, 16)
    with torch.profiler.profile(record_shapes=True, profile_memory=True) as profile:
        contract(manifold, x, data, (2, 3))
    largest = max(event.cpu_memory_usage for event in profile.key_averages())
    assert largest < 4 * manifold.dense_size / 4


@pytest.mark.parametrize(
    ("modes", "shape", "message"),
    [
        ((0, 0), (4, 4), "distinct"),
        ((3,), (4,), "distinct modes"),
        ((-1,), (6,), "distinct modes"),
        ((1, 2), (5, 5), r"sizes \(5, 6\)"),
        ((0, 1), (5,), r"sizes \(4, 5\)"),
    ],
)
def test_what_does_not_fit_is_refused(modes, shape, message):
    manifold = MANIFOLDS["tucker"]
    with pytest.raises(ValueError, match=message):
        contract(manifold, manifold.origin(), torch.zeros(shape), modes)


def test_batches_of_points_and_other_manifolds_are_refused():
    manifold = MANIFOLDS["tucker"]
    with pytest.raises(ValueError, match="one point"):
        contract(manifold, manifold.random(2, manifold.size), torch.zeros(4), (0,))
    with pytest.raises(TypeError, match="tensor tree"):
        contract(object(), manifold.origin(), torch.zeros(4), (0,))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace", "ignore::torch.jit.TracerWarning")
def test_a_traced_contraction_takes_other_batches():
    layer = Linear(12, 10, format="tensor-train", rank=2, dtype=torch.float64)
    traced = torch.jit.trace(layer, torch.randn(3, 12, dtype=torch.float64))
    x = torch.randn(7, 12, dtype=torch.float64)
    torch.testing.assert_close(traced(x), layer(x))
