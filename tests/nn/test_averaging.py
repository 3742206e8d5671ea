"""Averages of models are those of their tensors, whatever the factors."""

import copy

import pytest
import torch
from torch import nn

from tenfold.manifolds import (
    FixedRankManifold,
    HierarchicalTuckerManifold,
    TensorTrainManifold,
    TuckerManifold,
    move_,
)
from tenfold.nn import AveragedModel, Conv2d, Format, Linear

MANIFOLDS = {
    "matrix": FixedRankManifold((6, 5), 2),
    "tucker": TuckerManifold((4, 5, 6), (2, 3, 2)),
    "partial": TuckerManifold((6, 5, 3, 2), (2, 3), modes=(0, 1)),
    "train": TensorTrainManifold((3, 4, 5, 2), 2),
    "train matrix": TensorTrainManifold((3, 4, 5, 2), 2, rows=2),
    "hierarchical": HierarchicalTuckerManifold((3, 4, 3, 5), 2),
}


@pytest.mark.parametrize("name", MANIFOLDS)
def test_a_weighted_sum_is_that_of_the_dense_tensors(name):
    manifold = MANIFOLDS[name]
    torch.manual_seed(0)
    other = manifold.with_rank(1 if name == "matrix" else [1] * len(manifold.tree.ranks))
    x, y = manifold.random(dtype=torch.float64), other.random(dtype=torch.float64)
    z = manifold.random(dtype=torch.float64)
    total = manifold.weighted_sum((0.3, manifold, x), (2.0, other, y), (-1.0, manifold, z))
    found, point = total.by_tolerance(0.0)
    expected = 0.3 * manifold.to_dense(x) + 2.0 * other.to_dense(y) - manifold.to_dense(z)
    torch.testing.assert_close(found.to_dense(point), expected)
    found.assert_check_point_on_manifold(point)
    with pytest.raises(ValueError, match="format or the shape"):
        manifold.weighted_sum((1.0, FixedRankManifold((9, 9), 1), x))


def model(rank=3):
    torch.manual_seed(0)
    return nn.Sequential(
        Conv2d(4, 5, 3, rank=rank, dtype=torch.float64),
        nn.BatchNorm2d(5).double(),
        nn.Flatten(),
        Linear(20, 6, rank=rank, dtype=torch.float64),
        Linear(6, 6, format="tensor-train", rank=2, dtype=torch.float64),
        nn.Linear(6, 2).double(),
    )


def redrawn(net):
    """The same model with new weights near the old ones, and factors that are not near at all."""
    with torch.no_grad():
        for layer in (net[0], net[3], net[4]):
            manifold, w = layer.manifold, layer.weight
            step = manifold.proju(w, torch.randn_like(w))
            point = manifold.retr(w, 0.05 * step)
            factors = list(manifold.unpack_tensor(point))
            # Two signs in one pair of adjacent factors: another representation of the same tensor.
            child = next(v for v in range(len(factors)) if v != manifold.tree.root)
            parent = manifold.tree.parent[child]
            factors[child] = -factors[child]
            factors[parent] = -factors[parent]
            w.copy_(manifold.pack_point(*factors))
        net[5].weight.add_(0.1 * torch.randn_like(net[5].weight))
        net[1].running_mean.add_(1.0)


@pytest.mark.parametrize("decay", [None, 0.0, 0.6])
def test_averages_are_near_those_of_the_dense_weights(decay):
    net = model()
    average = AveragedModel(net, decay=decay)
    plain = torch.optim.swa_utils.AveragedModel(net)
    dense = None
    for count in range(4):
        redrawn(net)
        now = [layer.dense_weight().detach() for layer in (net[0], net[3], net[4])]
        now.append(net[5].weight.detach().clone())
        old = 0.0 if count == 0 else count / (count + 1) if decay is None else decay
        dense = now if dense is None else [old * d + (1 - old) * n for d, n in zip(dense, now, strict=True)]
        average.update_parameters(net)
        plain.update_parameters(net)
    module = average.module
    for layer, expected in zip((module[0], module[3], module[4]), dense, strict=False):
        assert (layer.dense_weight() - expected).norm() < 0.05 * expected.norm()
        layer.manifold.assert_check_point_on_manifold(layer.weight)
    torch.testing.assert_close(module[5].weight, dense[3])
    torch.testing.assert_close(module[1].running_mean, net[1].running_mean)
    if decay is None:
        # What the averages of torch make of the same weights: the signs cancel.
        wrong = (plain.module[3].dense_weight() - dense[1]).norm()
        assert wrong > 0.3 * dense[1].norm()


def test_the_average_follows_the_rank_of_the_model_and_its_state_loads():
    net = model()
    average = AveragedModel(net, decay=0.5)
    average.update_parameters(net)
    layer = net[3]
    move_(layer.weight, *layer.manifold.truncation(layer.weight.detach()).to(2))
    average.update_parameters(net)
    assert average.module[3].rank == (2,)
    average(torch.randn(2, 4, 4, 4, dtype=torch.float64))
    fresh = AveragedModel(model(), decay=0.5)
    fresh.load_state_dict(average.state_dict())
    assert fresh.module[3].rank == (2,)
    assert int(fresh.n_averaged) == 2


def test_buffers_are_averaged_on_request_and_the_decay_is_checked():
    net = model()
    average = AveragedModel(net, decay=0.75, use_buffers=True)
    average.update_parameters(net)
    net[1].running_mean.fill_(4.0)
    average.update_parameters(net)
    assert torch.equal(average.module[1].running_mean, torch.ones(5, dtype=torch.float64))
    with pytest.raises(ValueError, match="decay"):
        AveragedModel(net, decay=1.0)
    assert {Format.TUCKER, Format.FIXED_RANK} <= {layer.format for layer in (net[0], net[3])}


@pytest.mark.parametrize("decay", [None, 0.5])
def test_an_average_may_be_kept_in_another_precision(decay):
    net = model().float()
    average, wide = AveragedModel(net, decay=decay).double(), AveragedModel(model(), decay=decay)
    for _ in range(3):
        redrawn(net)
        average.update_parameters(net)
        wide.update_parameters(copy.deepcopy(net).double())
    for mean, expected in zip(average.parameters(), wide.parameters(), strict=True):
        assert mean.dtype == torch.float64
        torch.testing.assert_close(mean, expected)


def test_weights_in_half_precision_are_averaged():
    net = model().bfloat16()
    average, wide = AveragedModel(net, decay=0.5), AveragedModel(model().float(), decay=0.5)
    for _ in range(3):
        with torch.no_grad():
            net[3].weight.add_(0.5 * net[3].manifold.radial(net[3].weight))
        for mean in (average, wide):
            mean.update_parameters(net)
    found, expected = (mean.module[3].dense_weight().float() for mean in (average, wide))
    assert average.module[3].weight.dtype == torch.bfloat16
    assert (found - expected).norm() < 0.05 * expected.norm()
