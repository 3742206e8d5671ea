"""Normalisations inside of low-rank convolutions give the same, keep less and can be moved back."""

import copy
import pickle
from collections import OrderedDict
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import tenfold
from tenfold.experiments.models import build, dense_by_default
from tenfold.nn import Conv1d, Conv2d, Conv3d, ConvTranspose2d, fuse_normalization, recompute_activations
from tenfold.nn.attention import MultiheadAttention
from tenfold.nn.normalization import _Variance

LAYERS = {
    "conv1d": (Conv1d, nn.BatchNorm1d, {}, (4, 6, 9)),
    "conv2d": (Conv2d, nn.BatchNorm2d, {}, (4, 6, 7, 8)),
    "conv2d, bias": (Conv2d, nn.BatchNorm2d, {"bias": True}, (4, 6, 7, 8)),
    "conv2d, output mode": (Conv2d, nn.BatchNorm2d, {"modes": (0,)}, (4, 6, 7, 8)),
    "conv2d, tensor train": (Conv2d, nn.BatchNorm2d, {"format": "tensor-train"}, (4, 6, 7, 8)),
    "conv2d, fixed rank": (Conv2d, nn.BatchNorm2d, {"format": "fixed-rank", "stride": 2}, (4, 6, 7, 8)),
    "conv2d, reflect": (Conv2d, nn.BatchNorm2d, {"padding": 1, "padding_mode": "reflect"}, (4, 6, 7, 8)),
    "conv3d": (Conv3d, nn.BatchNorm3d, {}, (2, 6, 5, 4, 5)),
    "transposed": (ConvTranspose2d, nn.BatchNorm2d, {"stride": 2}, (4, 6, 3, 4)),
}
NORMS = {
    "default": {},
    "cumulative": {"momentum": None},
    "no statistics": {"track_running_stats": False},
    "no parameters": {"affine": False},
}


def pair(name="conv2d", **options):
    cls, norm, arguments, shape = LAYERS[name]
    torch.manual_seed(0)
    conv = cls(6, 10, 3, rank=3, **{"bias": False, **arguments})
    model = nn.Sequential(OrderedDict(conv=conv, norm=norm(10, **options), relu=nn.ReLU(inplace=True)))
    model = model.double()
    with torch.no_grad():
        for parameter in model.norm.parameters():
            parameter.uniform_(0.5, 1.5)
    return model, torch.randn(shape, dtype=torch.float64) + 3.0


def trained(model, x, steps=3, training=True):
    """Outputs, gradients of input and parameters by their sizes in order, and the state after some steps."""
    model.train()
    if not training:
        model(x)
        model.eval()
    found = []
    for step in range(steps):
        data = (x * (step + 1)).requires_grad_()
        model.zero_grad()
        y = model(data)
        (y * torch.arange(y.numel()).reshape(y.shape).sin()).sum().backward()
        found += [y.detach(), data.grad, *(p.grad.clone() for p in model.parameters())]
    return found, model.state_dict()


def assert_same(first, second):
    for a, b in zip(first[0], second[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert first[1].keys() == second[1].keys()
    for name, value in first[1].items():
        torch.testing.assert_close(second[1][name], value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("name", "norm"), [*((name, "default") for name in LAYERS), *(("conv2d, bias", norm) for norm in NORMS)]
)
def test_same_results_gradients_and_statistics(name, norm, training, recompute):
    model, x = pair(name, **NORMS[norm])
    fused = copy.deepcopy(model)
    assert fuse_normalization(fused) == 1
    assert isinstance(fused.norm, nn.Identity)
    if recompute:
        recompute_activations(fused)
    assert_same(trained(model, x, training=training), trained(fused, x, training=training))


def test_same_in_channels_last():
    model, x = pair()
    fused = copy.deepcopy(model).to(memory_format=torch.channels_last)
    fuse_normalization(fused)
    assert_same(trained(model, x), trained(fused, x.to(memory_format=torch.channels_last)))


def test_a_frozen_normalisation_in_a_training_model():
    model, x = pair()
    model(x)
    fused = copy.deepcopy(model)
    fuse_normalization(fused)
    model.norm.eval()
    fused.conv.norm.eval()
    for one in (model, fused):
        for parameter in (one.norm if one is model else one.conv.norm).parameters():
            parameter.requires_grad_(False)
    results = []
    for one in (model, fused):
        y = one(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [one.conv.weight]), *one.buffers()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_second_derivatives():
    model, x = pair()
    fused = copy.deepcopy(model)
    fuse_normalization(fused)
    found = []
    for one in (model, fused):
        data = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(one(data).pow(3).sum(), data, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), [data, one.conv.weight]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_a_large_mean_costs_no_digits():
    model, x = pair()
    x = x + 1e3
    expected = model(x)
    single = copy.deepcopy(model).float()
    fused = copy.deepcopy(single)
    fuse_normalization(fused)
    plain_error = (single(x.float()) - expected).abs().max()
    assert (fused(x.float()) - expected).abs().max() < 2 * plain_error + 1e-6


@pytest.mark.parametrize("training", [True, False])
def test_autocast(training):
    model, x = pair()
    model, x = model.float().train(training), x.float()
    fused = copy.deepcopy(model)
    fuse_normalization(fused)
    expected = model(x)
    for one in (model, fused):
        with torch.autocast("cpu", torch.bfloat16):
            y = one(x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)
    torch.testing.assert_close(fused.conv.norm.running_var, model.norm.running_var, rtol=0.05, atol=0.05)
    for one in (copy.deepcopy(model), copy.deepcopy(fused)):
        y = one.bfloat16()(x.bfloat16())
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), model(x), rtol=0.1, atol=0.1)


def test_the_batch_that_torch_refuses():
    model, _ = pair()
    x = torch.randn(1, 6, 3, 3, dtype=torch.float64)
    fused = copy.deepcopy(model)
    fuse_normalization(fused)
    for one in (model, fused):
        with pytest.raises(ValueError, match=r"more than 1 value per channel .*\[1, 10, 1, 1\]"):
            one(x)
        with pytest.raises(ValueError, match="expected 4D input"):
            one(x[0])
    torch.testing.assert_close(model.eval()(x), fused.eval()(x))


def networks(name):
    torch.manual_seed(0)
    model = build(name, in_channels=3, num_classes=10, image_size=32)
    tenfold.nn.factorize(model, rank=0.2, exclude=dense_by_default(model), init="random")
    return model, torch.randn(4, 3, 32, 32)


@pytest.mark.parametrize(("name", "count"), [("vgg16", 12), ("resnet18", 19)])
def test_networks(name, count):
    model, x = networks(name)
    fused = copy.deepcopy(model)
    order = [id(parameter) for parameter in fused.parameters()]
    assert fuse_normalization(fused) == count
    assert fuse_normalization(fused) == 0
    assert [id(parameter) for parameter in fused.parameters()] == order
    assert set(fused.state_dict()) == set(model.state_dict())
    torch.testing.assert_close(fused(x), model(x), rtol=1e-3, atol=1e-3)
    assert fuse_normalization(fused, enabled=False) == count
    assert list(fused.state_dict()) == list(model.state_dict())
    assert str(fused) == str(model)


def test_states_of_both_forms_load_into_both():
    model, x = pair()
    model = nn.Sequential(OrderedDict(first=model, second=nn.Flatten()))
    fused = copy.deepcopy(model)
    fuse_normalization(fused)
    fused.requires_grad_(False)
    for one, other in ((model, fused), (fused, model)):
        one.train()(x + torch.randn_like(x))
        other.load_state_dict(copy.deepcopy(one.state_dict()))
        assert set(other.state_dict()) == set(one.state_dict())
        torch.testing.assert_close(one.eval()(x), other.eval()(x), rtol=1e-10, atol=1e-10)
    factors = tenfold.nn.factor_state_dict(fused)
    assert set(factors) == set(tenfold.nn.factor_state_dict(model))
    tenfold.nn.load_factor_state_dict(fused, tenfold.nn.factor_state_dict(model))
    with pytest.raises(RuntimeError, match=r"Missing key.*conv\.norm\.weight"):
        fused.load_state_dict({k: v for k, v in model.state_dict().items() if k != "first.norm.weight"})
    assert set(fused.first.state_dict()) == set(model.first.state_dict())


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(how):
    model, x = pair()
    fused = copy.deepcopy(model)
    fuse_normalization(fused)
    again = how(fused)
    assert_same(trained(model, x), trained(again, x))
    assert again.conv.norm is not fused.conv.norm
    assert fuse_normalization(again, enabled=False) == 1
    assert type(again.norm) is nn.BatchNorm2d


POOLED = {
    "max": nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(2)),
    "mean of another activation": nn.Sequential(nn.GELU(), nn.AvgPool2d(2)),
    "pooling alone": nn.Sequential(nn.MaxPool2d(2), nn.ReLU(inplace=True)),
    "indices": nn.Sequential(nn.ReLU(), nn.MaxPool2d(2, return_indices=True)),
    "dropout": nn.Sequential(nn.ReLU(), nn.Dropout(0.5), nn.MaxPool2d(2)),
}


@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", POOLED)
def test_poolings_are_repeated(name, fused, inner):
    (conv, norm, _), x = pair()
    tail = copy.deepcopy(POOLED[name])
    model = nn.Sequential(nn.Sequential(conv, *([norm] if fused else []), *tail)).double()
    again = copy.deepcopy(model)
    parts = ["norm"] if fused else []
    assert fuse_normalization(again) == len(parts)
    recompute_activations(again)
    assert recompute_activations(again, inner=inner) == 1
    moved = {"indices": [], "dropout": [], "pooling alone": ["pooling"]}.get(name, ["activation", "pooling"])
    assert list(again[0][0].parts) == parts + moved
    assert fuse_normalization(again) == 0
    for module in (*model.modules(), *again.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if name != "indices":
        assert_same(trained(model, x), trained(again, x))
        assert_same(trained(model, x, training=False), trained(again, x, training=False))
        assert kept(again, x) <= kept(model, x)
    with pytest.raises(ValueError, match="enabled=False") if parts + moved else nullcontext():
        again[0][0].to_dense()
    undo = fuse_normalization if fused else recompute_activations
    undo(again, enabled=False)
    assert str(again) == str(model)
    assert list(again.state_dict()) == list(model.state_dict())


def test_a_normalisation_after_a_pooling_stays():
    (conv, norm, _), x = pair()
    model = nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2), norm)
    again = copy.deepcopy(model)
    recompute_activations(again)
    assert list(again[0].parts) == ["activation", "pooling"]
    assert fuse_normalization(again) == 0
    assert_same(trained(model, x), trained(again, x))


def test_densify_moves_back():
    model, x = pair()
    fused = copy.deepcopy(model)
    fuse_normalization(fused)
    with pytest.raises(ValueError, match="enabled=False"):
        fused.conv.to_dense()
    tenfold.nn.densify(fused)
    assert [type(part) for part in fused] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    torch.testing.assert_close(fused(x), model(x), rtol=1e-10, atol=1e-10)


def test_another_normalisation_in_its_place_is_applied():
    model, x = pair()
    fuse_normalization(model)
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert isinstance(synchronised.conv.norm, nn.SyncBatchNorm)
    torch.testing.assert_close(synchronised.eval()(x), model.eval()(x), rtol=1e-10, atol=1e-10)
    model.conv.norm = nn.GroupNorm(2, 10).double()
    assert model(x).shape == (4, 10, 5, 6)


class Free(nn.Module):
    """Uses its layers as it is told."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.norm, self.how = Conv2d(6, 6, 3, rank=2, padding=1), nn.BatchNorm2d(6), how

    def forward(self, x):
        return self.how(self, x)


def _by_data(m, x):
    return m.norm(m.conv(x)) if x.sum() > 0 else m.conv(x)


@pytest.mark.parametrize(
    ("how", "count"),
    [
        (lambda m, x: m.norm(m.conv(x)), 1),
        (lambda m, x: m.norm(m.conv(m.norm(m.conv(x)))), 1),
        (lambda m, x: m.conv(x) + m.norm(m.conv(x)), 0),
        (lambda m, x: m.norm(m.conv(x) + x), 0),
        (lambda m, x: m.norm(m.norm(m.conv(x))), 0),
        (lambda m, x: m.norm(x) + m.norm(m.conv(x)), 0),
        (lambda m, x: (lambda y: y + m.norm(y))(m.conv(x)), 0),
        (lambda m, x: m.norm(m.conv(x)) * m.norm.weight.mean(), 0),
        (_by_data, 0),
    ],
    ids=["once", "twice", "also without", "sum", "twice in a row", "elsewhere", "both", "read", "by data"],
)
def test_what_is_moved(how, count):
    torch.manual_seed(0)
    model, x = Free(how).double(), torch.randn(2, 6, 5, 5, dtype=torch.float64)
    fused = copy.deepcopy(model)
    assert fuse_normalization(fused) == count
    assert_same(trained(model, x), trained(fused, x))


def test_low_rank_attention_beside_is_no_obstacle():
    model = Free(lambda m, x: (lambda y: m.attention(y, y, y)[0])(m.norm(m.conv(x)).flatten(2).mT))
    model.attention = MultiheadAttention.split(nn.MultiheadAttention(6, 2, batch_first=True))
    assert fuse_normalization(model) == 1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fused_in", [True, False])
def test_what_only_one_mode_does_counts(training, fused_in):
    def forward(m, x):
        y = m.conv(x)
        return m.norm(y) + y if m.training == training else m.norm(y)

    model = Free(forward).train(fused_in)
    assert fuse_normalization(model) == 0
    assert model.training == model.norm.training == fused_in


def test_what_stays():
    def count(conv, norm):
        return fuse_normalization(nn.Sequential(conv, norm))

    assert count(Conv2d(6, 6, 3, rank=2), nn.BatchNorm2d(6)) == 1
    assert count(Conv2d(6, 6, 3, rank=2, modes=(1,)), nn.BatchNorm2d(6)) == 0
    assert count(Conv2d(6, 6, 3, rank=2), nn.SyncBatchNorm(6)) == 0
    assert count(Conv2d(6, 6, 3, rank=2), nn.InstanceNorm2d(6)) == 0
    assert count(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)) == 0
    hooked = nn.BatchNorm2d(6)
    hooked.register_forward_hook(lambda *arguments: None)
    assert count(Conv2d(6, 6, 3, rank=2), hooked) == 0
    patched = nn.BatchNorm2d(6)
    patched.forward = lambda x: x
    assert count(Conv2d(6, 6, 3, rank=2), patched) == 0
    conv, norm = Conv2d(6, 6, 3, rank=2), nn.BatchNorm2d(6)
    assert fuse_normalization(nn.Sequential(conv, norm, nn.ReLU(), conv, norm)) == 0
    assert fuse_normalization(conv) == 0
    # Inside of what fx cannot follow, a sequence may be taken apart; what has a forward of its own is found.
    inside = Free(lambda m, x: m.block(x) if x.sum() > 0 else x)
    inside.block = nn.Sequential(Conv2d(6, 6, 3, rank=2), nn.BatchNorm2d(6))
    assert fuse_normalization(inside) == 0
    inside.block = Block()
    assert fuse_normalization(inside) == 1


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own
def test_compiled_in_one_graph():
    (conv, norm, relu), x = pair()
    model = nn.Sequential(conv, norm, relu, nn.MaxPool2d(2))
    fused = copy.deepcopy(model)
    fuse_normalization(fused)
    repeated = copy.deepcopy(fused)
    recompute_activations(repeated)
    for one, training in [(fused, True), (fused, False), (repeated, True)]:
        compiled = copy.deepcopy(one)
        compiled.compile(backend="aot_eager", fullgraph=True)
        plain = copy.deepcopy(model)
        assert_same(trained(plain, x, training=training), trained(compiled, x, training=training))


def test_vmap_and_functional_call():
    model, x = pair()
    fused = copy.deepcopy(model).eval()
    fuse_normalization(fused)
    state = dict(fused.named_parameters()) | dict(fused.named_buffers())

    def loss(weight, data):
        return torch.func.functional_call(fused, {**state, "conv.weight": weight}, (data[None],)).sum()

    weight = fused.conv.weight.detach()
    grads = torch.func.vmap(torch.func.grad(loss), (None, 0))(weight, x)
    for grad, data in zip(grads, x, strict=True):
        torch.testing.assert_close(grad, torch.func.grad(loss)(weight, data))


def kept(model, x):
    """Bytes of the activations that are kept for the backward pass."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that no address is used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = model(x)
    del y
    return sum(size for size, _ in storages.values())


@pytest.mark.parametrize(
    ("name", "bounds"), [("vgg16", (0.85, 0.56, 0.40)), ("resnet18", (0.75, 0.75, 0.55))]
)
def test_less_is_kept(name, bounds):
    """Of what the dense network keeps in activations: fused, poolings repeated, and all repeated."""
    dense = build(name, in_channels=3, num_classes=10, image_size=32)
    model = build(name, in_channels=3, num_classes=10, image_size=32)
    tenfold.nn.factorize(model, rank=0.16, exclude=dense_by_default(model), init="random")
    x = torch.randn(16, 3, 32, 32)
    whole = kept(dense, x)
    fuse_normalization(model)
    found = [kept(model, x)]
    for inner in (False, True):
        recompute_activations(model, inner=inner)
        found.append(kept(model, x))
    assert all(few < bound * whole for few, bound in zip(found, bounds, strict=True))
    fuse_normalization(model, enabled=False)
    recompute_activations(model, enabled=False)
    assert kept(model, x) > whole


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.5])
def test_channels_that_vary_far_less_than_others_keep_their_variance(noise):
    """Grey images of 0 to 255 and filters of opposite colours, which see hardly any of the covariance."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
    with torch.no_grad():
        conv.weight[8:] -= conv.weight[8:].mean(1, keepdim=True)
    model = nn.Sequential(conv, nn.BatchNorm2d(16))
    tenfold.nn.factorize(model, rank=1.0)
    x = 255 * torch.rand(8, 1, 16, 16).expand(-1, 3, -1, -1) + noise * torch.randn(8, 3, 16, 16)
    exact = copy.deepcopy(model).double()(x.double())
    unfused = (copy.deepcopy(model)(x).double() - exact).abs().max()
    fuse_normalization(model)
    output = model(x)
    assert (output.double() - exact).abs().max() < 3 * unfused
    output.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_an_empty_batch_leaves_the_running_statistics():
    model, x = pair()
    fuse_normalization(model)
    model(x)
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
    model(x[:0]).sum().backward()
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value)
    assert all(p.grad.isfinite().all() for p in model.parameters())


class Untraceable(nn.Module):
    """A network whose parts cannot be followed from outside, as it looks at its input."""

    def __init__(self, way):
        super().__init__()
        layers = [(Conv2d(8, 8, 3, padding=1, rank=4, bias=False), nn.BatchNorm2d(8)) for _ in range(2)]
        self.layers = nn.Sequential(*(module for pair in layers for module in pair))
        self.block = Block()
        self.way = way

    def forward(self, x):
        if x.shape[1] != 8:
            raise ValueError("channels")
        if self.way == "residual":
            for layer in self.layers:
                x = x + layer(x)
        elif self.way == "tapped":
            x = self.layers(x) + self.layers[0](x)
        return self.block(x)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = Conv2d(8, 8, 3, padding=1, rank=4, bias=False), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.norm(self.conv(x)).relu()


@pytest.mark.parametrize("way", ["residual", "tapped", "unused"])
def test_a_sequential_that_a_network_takes_apart_is_left_alone(way):
    torch.manual_seed(0)
    model = Untraceable(way).double()
    fused = copy.deepcopy(model)
    assert fuse_normalization(fused) == 1  # the block has a forward of its own
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(fused(x), model(x))


def test_variances_below_zero_by_rounding_are_zero():
    covariance = -1e-12 * torch.eye(3, dtype=torch.float64)
    assert torch.equal(_Variance.apply(torch.ones(2, 3), covariance), torch.zeros(2))
