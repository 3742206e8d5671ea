"""The layers against their dense counterparts."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import tenfold
from tenfold.manifolds import TuckerManifold
from tenfold.nn import TuckerConv2d, TuckerLinear

CONVOLUTIONS = {
    "plain": {},
    "padded": {"padding": 1},
    "strided": {"stride": 2, "padding": (2, 1)},
    "valid": {"padding": "valid", "dilation": (2, 1)},
    "same": {"padding": "same", "dilation": 2},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "circular": {"padding": 2, "padding_mode": "circular", "bias": False},
    "replicate": {"padding": 1, "padding_mode": "replicate", "stride": (1, 2)},
}
MODES = [(0, 1), (0, 1, 2, 3), (0,), (1,), (2, 3), (0, 2)]


def conv(modes=(0, 1), rank=2, **options):
    torch.manual_seed(0)
    return TuckerConv2d(5, 6, (3, 2), rank=rank, modes=modes, dtype=torch.float64, **options)


def linear(**options):
    torch.manual_seed(0)
    return TuckerLinear(7, 5, rank=3, dtype=torch.float64, **options)


def images(*batch):
    return torch.randn(*batch, 5, 8, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


LAYERS = {"conv": (conv, images(3)), "linear": (linear, torch.randn(4, 7, dtype=torch.float64))}


@pytest.mark.parametrize("modes", MODES, ids=str)
@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolution_equals_the_dense_one(modes, options):
    layer = conv(modes, **options)
    dense = layer.to_dense()
    for x in (images(3), images(), images(0), images(3).transpose(-1, -2).contiguous().transpose(-1, -2)):
        torch.testing.assert_close(layer(x), dense(x))
    channels_last = images(3).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(channels_last), dense(channels_last))


@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_the_dense_one(bias):
    layer = linear(bias=bias)
    dense = layer.to_dense()
    x = torch.randn(4, 3, 7, dtype=torch.float64)
    for rows in (x, x[0], x[0, 0], x[:0], x.transpose(0, 1)):
        torch.testing.assert_close(layer(rows), dense(rows))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("inverse_free", [False, True])
def test_gradients_equal_those_of_the_dense_layer(name, inverse_free):
    """The packed gradient gives the projection of the dense layer's gradient; bias and input agree."""
    make, x = LAYERS[name]
    layer = make(inverse_free=inverse_free)
    dense = layer.to_dense()
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer(ours).square().sum().backward()
    dense(theirs).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(layer.bias.grad, dense.bias.grad)
    manifold, w = layer.manifold, layer.weight.detach()
    torch.testing.assert_close(
        manifold.egrad2rgrad(w, layer.weight.grad), manifold.project_dense(w, dense.weight.grad)
    )


@pytest.mark.parametrize("rank", [1, 2, 4, 16, 64])
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_initial_variance_is_that_of_the_dense_layer(kind, rank):
    torch.manual_seed(0)
    if kind == "conv":
        layer, dense = TuckerConv2d(64, 96, 3, rank=rank), nn.Conv2d(64, 96, 3)
    else:
        layer, dense = TuckerLinear(128, 96, rank=rank), nn.Linear(128, 96)
    ratio = layer.dense_weight().var() / dense.weight.var()
    assert 0.9 < ratio < 1.1
    assert layer.bias.abs().max() <= dense.bias.abs().max() * 1.1


@pytest.mark.parametrize("name", LAYERS)
def test_from_dense_at_full_rank_is_exact_and_honours_tolerances(name):
    make, x = LAYERS[name]
    for bias in (True, False):
        dense = make(bias=bias).to_dense()
        cls = type(make())
        full = cls.from_dense(dense, rank=1.0)
        torch.testing.assert_close(full(x), dense(x))
        assert (full.bias is None) == (not bias)
        torch.testing.assert_close(full.to_dense()(x), dense(x))
    for tol in (0.0, 0.1, 0.3, 0.7):
        layer = cls.from_dense(dense, tol=tol)
        error = torch.linalg.norm((layer.dense_weight() - dense.weight).flatten())
        assert error <= (2**0.5 * tol + 1e-12) * torch.linalg.norm(dense.weight.flatten())
    assert cls.from_dense(dense, tol=0.7).compression > cls.from_dense(dense, tol=0.1).compression


def test_from_dense_refuses_what_does_not_fit():
    with pytest.raises(TypeError, match=r"needs a torch\.nn\.Conv2d, got Linear"):
        TuckerConv2d.from_dense(nn.Linear(3, 4), rank=1)
    with pytest.raises(TypeError, match=r"needs a torch\.nn\.Linear, got Conv2d"):
        TuckerLinear.from_dense(nn.Conv2d(3, 4, 1), rank=1)
    with pytest.raises(ValueError, match="either rank or tol"):
        TuckerLinear.from_dense(nn.Linear(3, 4))
    with pytest.raises(ValueError, match="either rank or tol"):
        TuckerLinear.from_dense(nn.Linear(3, 4), rank=1, tol=0.1)
    with pytest.raises(ValueError, match="groups=1"):
        TuckerConv2d.from_dense(nn.Conv2d(4, 4, 3, groups=2), rank=1)


@pytest.mark.parametrize("rank", [(9, 2), (2, 6), 0, 0.0, 1.5, (2, 2, 2)], ids=str)
def test_infeasible_ranks_are_refused(rank):
    with pytest.raises(ValueError, match="rank"):
        TuckerConv2d(5, 6, 3, rank=rank)


@pytest.mark.parametrize("name", LAYERS)
def test_state_dict_carries_the_rank(name):
    make, x = LAYERS[name]
    saved = make()
    stream = io.BytesIO()
    torch.save(saved.state_dict(), stream)
    stream.seek(0)
    state = torch.load(stream, weights_only=True)
    assert tuple(state["weight_rank"].tolist()) == saved.rank
    options = {"rank": (1, 1)} if name == "linear" else {"rank": (4, 5)}
    other = TuckerLinear(7, 5, dtype=torch.float64, **options) if name == "linear" else conv(**options)
    assert other.rank != saved.rank
    other.load_state_dict(state)
    assert other.rank == saved.rank
    assert torch.equal(other(x), saved(x))
    other(x).sum().backward()
    assert other.weight.grad.shape == other.weight.shape


def test_foreign_state_is_refused_with_the_reason():
    layer = TuckerLinear(7, 5, rank=2)
    state = layer.state_dict()
    for change, message in [
        ({"weight_rank": torch.tensor([6, 6])}, "largest feasible rank"),
        ({"weight_rank": torch.tensor([1, 1])}, "needs 13 numbers"),
        ({"weight": torch.zeros(3)}, "needs 28 numbers, the saved ones are 3"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict({**state, **change})
    without = {key: value for key, value in state.items() if key != "weight_rank"}
    layer.load_state_dict(without)
    with pytest.raises(RuntimeError, match="weight_rank is missing"):
        TuckerLinear(7, 5, rank=3).load_state_dict(without)
    assert layer.rank == (2, 2)


@pytest.mark.parametrize("name", LAYERS)
def test_meta_layer_takes_a_state_by_assignment(name):
    make, x = LAYERS[name]
    saved, layer = make(), make(device="meta")
    layer.load_state_dict(saved.state_dict(), assign=True)
    assert torch.equal(layer(x), saved(x))
    assert layer.manifold == saved.manifold


@pytest.mark.parametrize("name", LAYERS)
def test_copies_and_conversions_keep_the_manifold(name):
    make, x = LAYERS[name]
    layer = make()
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
        assert twin.manifold == layer.manifold
        assert twin.weight is not layer.weight
        assert "weight_rank" in twin.state_dict()
    torch.testing.assert_close(copy.deepcopy(layer).float()(x.float()), layer(x).float())
    moved = copy.deepcopy(layer).to("meta")
    assert moved(x.to("meta")).device.type == "meta"
    assert moved.manifold == layer.manifold
    empty = moved.to_empty(device="cpu")
    empty.load_state_dict(layer.state_dict())
    assert torch.equal(empty(x), layer(x))
    frozen = copy.deepcopy(layer).requires_grad_(False).to("meta")
    assert not frozen.weight.requires_grad


@pytest.mark.parametrize("device", ["meta", "cuda"])
@pytest.mark.parametrize("name", LAYERS)
def test_forward_and_backward_on_other_devices(name, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    make, x = LAYERS[name]
    layer = make(device=device)
    layer(x.to(device)).sum().backward()
    assert layer.weight.grad.shape == layer.weight.shape
    optimizer = tenfold.optim.RiemannianSGD(layer.parameters(), lr=0.1, check_finite=device != "meta")
    optimizer.step()


def test_autocast_runs_in_bfloat16_and_returns_float32_gradients():
    layer = TuckerConv2d(8, 8, 3, padding=1, rank=0.5, modes=(0, 1, 2, 3))
    x = torch.randn(2, 8, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), layer.to_dense()(x), atol=0.05, rtol=0.05)


def test_forward_never_builds_the_dense_weight():
    layer = TuckerConv2d(64, 64, 3, rank=2, modes=(0, 1, 2, 3))
    sizes = _largest_array(lambda: layer(torch.randn(1, 64, 3, 3)).sum().backward())
    assert sizes < layer.dense_numel // 10


def _largest_array(work):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Probe(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for item in out if isinstance(out, tuple) else (out,):
                if isinstance(item, torch.Tensor):
                    Probe.largest = max(Probe.largest, item.numel())
            return out

    with Probe():
        work()
    return Probe.largest


def test_repr_names_the_arguments():
    assert "rank=(2, 2)" in repr(conv(padding=1))
    assert "padding_mode=circular" in repr(conv(padding=1, padding_mode="circular", bias=False))
    assert "out_features=5" in repr(linear())


class Bilinear(nn.Module):
    """A module of one's own with a declared parameter."""

    def __init__(self, device=None):
        super().__init__()
        tenfold.nn.declare(self, "weight", TuckerManifold((5, 6, 7), rank=2), device=device)


@pytest.mark.parametrize("make", [Bilinear, lambda: TuckerLinear(6, 4, rank=2)], ids=["own", "layer"])
def test_assigning_a_state_without_ranks_keeps_the_manifold(make):
    module, saved = make(), make()
    state = {name: value for name, value in saved.state_dict().items() if not name.endswith("_rank")}
    module.load_state_dict(state, assign=True)
    assert module.weight.manifold == saved.weight.manifold
    assert torch.equal(module.weight, saved.weight)


def test_a_declared_parameter_takes_a_state_after_to_empty():
    module, saved = Bilinear("meta"), Bilinear()
    assert "weight_rank" in module.to_empty(device="cpu").state_dict()
    assert module.weight.manifold == saved.weight.manifold
    other = copy.deepcopy(Bilinear("meta").to_empty(device="cpu"))
    for target in (module, other):
        target.load_state_dict(saved.state_dict())
        assert torch.equal(target.weight, saved.weight)
        assert target.weight.manifold == saved.weight.manifold
