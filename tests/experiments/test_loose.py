"""Layers with loose factors against the dense contraction, and against tensorly-torch where it is."""

import importlib
import warnings

import pytest
import torch
from torch import nn

from tenfold.experiments.loose import layer_class, loosen, start_on_manifolds

LOOSE = ["loose-tucker", "loose-cp", "loose-tt", "loose-matrix"]
CONVOLUTIONS = [
    nn.Conv2d(6, 16, 5),
    nn.Conv2d(5, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), bias=False),
]


def build(method, layer, rank=0.5, decay=None):
    torch.manual_seed(0)
    model = nn.Sequential(layer)
    loosen(model, method, {"0": rank}, decay)
    return model[0]


@pytest.mark.parametrize("method", LOOSE)
@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=["lenet", "odd"])
def test_a_convolution_computes_what_its_dense_kernel_does(method, layer):
    loose = build(method, layer).double()
    images = torch.randn(2, layer.in_channels, 12, 11, dtype=torch.float64)
    dense = nn.functional.conv2d(
        images, loose.dense_weight(), loose.bias, layer.stride, layer.padding, layer.dilation
    )
    torch.testing.assert_close(loose(images), dense)


@pytest.mark.parametrize("method", LOOSE)
def test_a_linear_layer_computes_what_its_dense_weight_does(method):
    loose = build(method, nn.Linear(7, 5)).double()
    x = torch.randn(3, 7, dtype=torch.float64)
    torch.testing.assert_close(loose(x), nn.functional.linear(x, loose.dense_weight(), loose.bias))


@pytest.mark.parametrize("method", LOOSE)
@pytest.mark.parametrize("layer", [nn.Conv2d(16, 24, 3), nn.Linear(100, 40)], ids=["conv", "linear"])
@pytest.mark.parametrize("decay", [None, 1.5])
def test_weights_start_with_the_norm_of_the_dense_layer(method, layer, decay):
    weight = build(method, layer, decay=decay).dense_weight()
    assert weight.shape == layer.weight.shape
    fan_in = weight[0].numel()
    assert weight.square().mean().item() == pytest.approx(1 / (3 * fan_in), rel=1e-4)


@pytest.mark.parametrize("method", LOOSE)
@pytest.mark.parametrize("rank", [0.01, 0.4, 1.0, 3, 1000])
def test_ranks_and_sizes(method, rank):
    for layer in (nn.Conv2d(6, 16, 5), nn.Linear(20, 10)):
        loose = build(method, layer, rank)
        assert loose.stored_numel == sum(p.numel() for p in loose.factors)
        if method != "loose-tucker":  # whose ranks are those of the manifold
            assert loose.rank == layer_class(method, layer.weight.ndim).start_rank(layer.weight.shape, rank)
        assert min(loose.rank) >= 1


@pytest.mark.parametrize("decay", [None, 3.0])
def test_loose_tucker_starts_where_tucker_starts(decay):
    def network():
        torch.manual_seed(7)
        return nn.Sequential(nn.Conv2d(6, 16, 5), nn.Flatten(), nn.Linear(40, 30))

    loose = network()
    loosen(loose, "loose-tucker", {"0": 0.5, "2": 0.5}, decay)
    geometric = network()
    start_on_manifolds(geometric, {"0": 0.5, "2": 0.5}, decay)
    for index in (0, 2):
        torch.testing.assert_close(loose[index].dense_weight(), geometric[index].dense_weight())
        assert torch.equal(loose[index].bias, geometric[index].bias)
        assert loose[index].rank == geometric[index].rank


def test_full_rank_means_every_kernel():
    """At full rank the factors can represent any weight: their product map has full rank."""
    for method, layer in [("loose-tucker", nn.Conv2d(3, 4, 2)), ("loose-tt", nn.Conv2d(3, 4, 2))]:
        loose = build(method, layer, 1.0).double()
        factors = [f.detach() for f in loose.factors]
        jacobian = torch.func.jacrev(
            lambda *f, e=loose.equation: torch.einsum(e, *f), tuple(range(len(factors)))
        )
        rows = torch.cat([j.reshape(loose.dense_numel, -1) for j in jacobian(*factors)], dim=1)
        assert torch.linalg.matrix_rank(rows) == loose.dense_numel


@pytest.mark.parametrize("change", [{"padding": "same"}, {"padding_mode": "reflect"}, {"groups": 2}])
def test_convolutions_that_loose_factors_cannot_have(change):
    with pytest.raises(ValueError, match=r"zeros and one group"):
        build("loose-cp", nn.Conv2d(4, 4, 3, **change))


@pytest.mark.parametrize("method", ["loose-cp", "loose-tucker"])
def test_against_tensorly_torch(method):
    """The reference implementation; its tensor trains fail on rectangular kernels and are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("tltorch")
        convolution = importlib.import_module("tltorch").FactorizedConv
        loose = build(method, nn.Conv2d(6, 16, 5), 4)
        kind = method.removeprefix("loose-")
        rank = 4 if kind == "cp" else (4, 4, 5, 5)
        peer = convolution(
            6, 16, 5, order=2, bias=True, rank=rank, factorization=kind, implementation="factorized"
        )
        with torch.no_grad():
            if kind == "cp":
                peer.weight.weights.fill_(1)
                factors = list(loose.factors)
            else:
                core, *bases = loose.factors
                peer.weight.core.copy_(core)
                factors = [*bases, torch.eye(5), torch.eye(5)]
            for mine, theirs in zip(factors, peer.weight.factors, strict=True):
                theirs.copy_(mine)
            peer.bias.copy_(loose.bias.reshape(peer.bias.shape))
        images = torch.randn(2, 6, 14, 14)
        torch.testing.assert_close(loose(images), peer(images), rtol=1e-4, atol=1e-5)
