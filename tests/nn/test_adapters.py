"""Adapters against dense oracles: what they compute, how they are switched and merged, what they refuse."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tenfold
from tenfold.nn import densify, factorize
from tenfold.nn.adapters import (
    AdaptedConv2d,
    AdaptedLinear,
    activate,
    adapt,
    adapter_names,
    deactivate,
    describe,
    merge,
    unadapt,
    unmerge,
)


def network():
    """Linear layers and convolutions of several geometries."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        nn.Conv2d(8, 6, (3, 1), stride=2, dilation=(2, 1), bias=False),
        nn.Flatten(),
        nn.Linear(6 * 2 * 4, 10),
        nn.Tanh(),
        nn.Linear(10, 4),
    ).double()


LAYERS = ["0", "2", "4", "6"]
X = torch.randn(5, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def stir(model):
    """Give every adapter an update that is not zero."""
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if hasattr(parameter, "manifold"):
            shape = parameter.shape
            parameter.copy_(parameter.manifold.random(*shape, dtype=parameter.dtype, generator=generator))
    return model


def oracle(model, shares):
    """The dense model with the sums of the updates in its weights."""
    dense = network()
    for name in LAYERS:
        layer, target = model.get_submodule(name), dense.get_submodule(name)
        weight = layer.weight.detach().clone()
        for adapter, share in shares.items():
            if adapter in layer.adapters:
                part = layer.adapters[adapter]
                manifold = part.update.manifold
                weight += share * part.scale * manifold.to_dense(part.update.weight.detach())
        target.weight.data = weight
    return dense


def snapshot(model):
    return (
        [(name, type(module)) for name, module in model.named_modules()],
        {name: (id(p), p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()},
    )


def unchanged(model, before):
    kinds, parameters = snapshot(model)
    assert kinds == before[0]
    assert parameters.keys() == before[1].keys()
    for name, (number, wanted, value) in parameters.items():
        assert (number, wanted) == before[1][name][:2]
        assert torch.equal(value, before[1][name][2])


# What is computed ----------------------------------------------------------------------------


def test_at_the_start_the_model_computes_what_it_did_and_all_else_is_frozen():
    model = network()
    expected = model(X)
    layers = list(model)
    report = adapt(model, rank=3)
    assert torch.equal(model(X), expected)
    assert list(model) == layers, "the layers are the same objects"
    assert [type(model[int(name)]) for name in LAYERS] == [AdaptedConv2d] * 2 + [AdaptedLinear] * 2
    assert [layer.name for layer in report.layers] == LAYERS
    assert report.stored == sum(p.numel() for p in model.parameters() if p.requires_grad)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == [f"{name}.adapters.default.update.weight" for name in LAYERS]


def test_updates_are_added_as_in_a_dense_model():
    model = network()
    adapt(model, rank=2, scale=0.5)
    stir(model)
    torch.testing.assert_close(model(X), oracle(model, {"default": 1.0})(X))
    assert not torch.allclose(model(X), network()(X))


def test_gradients_are_those_of_the_dense_update():
    layer = nn.Sequential(nn.Linear(7, 6)).double()
    adapt(layer, rank=2, scale=0.5)
    stir(layer)
    part = layer[0].adapters["default"].update
    manifold, x = part.manifold, part.weight
    data = torch.randn(9, 7, dtype=torch.float64)
    layer(data).square().sum().backward()
    update = manifold.to_dense(x.detach()).requires_grad_()
    F.linear(data, layer[0].weight + 0.5 * update, layer[0].bias).square().sum().backward()
    found = manifold.tangent_to_dense(x.detach(), manifold.egrad2rgrad(x.detach(), x.grad))
    u, v = manifold.unpack_tensor(x.detach())[1:]
    p, q = u @ u.mT, v @ v.mT
    grad = update.grad
    torch.testing.assert_close(found, p @ grad + grad @ q - p @ grad @ q)


def test_dropout_acts_on_the_update_in_training_only():
    model = nn.Sequential(nn.Linear(50, 4)).double()
    adapt(model, rank=2, dropout=0.5)
    stir(model)
    x = torch.randn(3, 50, dtype=torch.float64)
    torch.manual_seed(0)
    found = model(x)
    torch.manual_seed(0)
    kept = F.dropout(x, 0.5)
    part = model[0].adapters["default"]
    torch.testing.assert_close(
        found, F.linear(x, model[0].weight, model[0].bias) + kept @ part.dense_weight().mT
    )
    model.eval()
    torch.testing.assert_close(model(x), F.linear(x, model[0].merged_weight(), model[0].bias))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_weight_in_half_precision_gets_an_update_in_float32(dtype):
    model = nn.Sequential(nn.Linear(8, 8)).to(dtype)
    adapt(model, rank=2)
    assert model[0].adapters["default"].update.weight.dtype == torch.float32
    stir(model)
    x = torch.randn(3, 8, dtype=dtype)
    y = model(x)
    assert y.dtype == dtype
    y.float().sum().backward()
    before = model[0].weight.clone()
    merge(model)
    torch.testing.assert_close(model(x), y, rtol=2e-2, atol=5e-2)
    unmerge(model)
    assert torch.equal(model[0].weight, before)


def test_torchs_encoder_layer_does_not_bypass_the_update():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).double().eval()
    report = adapt(model, rank=2, include=["linear*"])
    stir(model)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    with torch.no_grad():
        fused = model(x)
    torch.testing.assert_close(fused, model(x))
    assert [layer.name for layer in report.layers] == ["linear1", "linear2"]
    with pytest.raises(ValueError, match="NonDynamicallyQuantizableLinear has no adapter"):
        adapt(model, rank=2, include=["self_attn.out_proj"], name="other")


# Several adapters ----------------------------------------------------------------------------


def test_several_adapters_have_their_own_layers_ranks_and_shares():
    model = network()
    adapt(model, rank=2, name="one")
    adapt(model, rank=3, name="two", include=["0", "6"], scale=2.0)
    stir(model)
    assert adapter_names(model) == ("one", "two")
    assert [layer.rank for layer in describe(model, "two").layers] == [(3, 3), (3,)]
    assert sum(p.requires_grad for p in model.parameters()) == 6
    for shares in ({"one": 1.0, "two": 1.0}, {"one": 0.25}, {"two": -1.0}, {}):
        deactivate(model)
        for name, share in shares.items():
            activate(model, name, share=share)
        torch.testing.assert_close(model(X), oracle(model, shares)(X))
    torch.testing.assert_close(model(X), network()(X))


def test_adapters_go_one_by_one_and_with_the_last_one_the_model_is_what_it_was():
    model = network()
    model[6].bias.requires_grad_(False)
    before = snapshot(model)
    adapt(model, rank=2, name="one", include=["4", "6"])
    adapt(model, rank=2, name="two", include=["0", "4"])
    unadapt(model, "one")
    assert adapter_names(model) == ("two",)
    assert type(model[6]) is nn.Linear
    assert not model[6].weight.requires_grad
    unadapt(model)
    unchanged(model, before)
    assert not any(key.startswith("_frozen") for key in model.__dict__)
    assert model.state_dict().keys() == network().state_dict().keys()


def test_a_part_of_a_model_can_be_adapted_and_given_back():
    model = nn.Sequential(network(), nn.Linear(4, 2).double())
    before = snapshot(model)
    adapt(model[0], rank=2, include=["4"])
    assert model[1].weight.requires_grad
    assert not model[0][0].weight.requires_grad
    unadapt(model)
    unchanged(model, before)


def test_parameters_can_stay_trainable():
    model = network()
    report = adapt(model, rank=2, trainable=["6.*", "4.bias"])
    assert set(report.left) == {"4", "6"}
    assert all(p.requires_grad for p in [model[6].weight, model[6].bias, model[4].bias])
    assert not model[4].weight.requires_grad


# Merging -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_merging_computes_the_same_and_unmerging_is_exact(dtype):
    model = network().to(dtype)
    adapt(model, rank=2, name="one")
    adapt(model, rank=2, name="two")
    stir(model)
    activate(model, "two", share=0.5)
    x, before = X.to(dtype), {key: value.clone() for key, value in model.state_dict().items()}
    expected = model(x)
    merge(model)
    merge(model)
    assert not torch.equal(model[4].weight, before["4.weight"])
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(model(x), expected, rtol=tolerance, atol=tolerance)
    # The state means the same thing, merged or not.
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    unmerge(model)
    assert torch.equal(model(x), expected)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_merged_model_without_adapters_is_dense():
    model = stir_of(network())
    expected = model(X)
    merge(model)
    with pytest.raises(ValueError, match="unmerge"):
        activate(model, share=0.5)
    with pytest.raises(ValueError, match="it is merged"):
        adapt(model, name="other", include=["0"])
    unadapt(model)
    assert {type(module) for module in model} <= {nn.Conv2d, nn.Linear, nn.ReLU, nn.Tanh, nn.Flatten}
    torch.testing.assert_close(model(X), expected)


def stir_of(model):
    adapt(model, rank=2)
    return stir(model)


def test_a_sum_that_is_not_finite_is_not_merged():
    model = stir_of(network())
    with torch.no_grad():
        model[6].adapters["default"].update.weight[0] = torch.nan
    before = [model[int(name)].weight.clone() for name in LAYERS]
    with pytest.raises(ValueError, match="'6' would hold NaN"):
        merge(model)
    assert all(torch.equal(a, model[int(name)].weight) for a, name in zip(before, LAYERS, strict=True))


# Shipping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("merged", [False, True])
def test_copies_are_independent(merged):
    model = stir_of(network())
    expected = model(X)
    if merged:
        merge(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(X), expected)
        unadapt(twin)
        assert model[0].adapters["default"].update.rank == (2, 2)
        assert all(p.requires_grad for p in twin.parameters())
    torch.testing.assert_close(model(X), expected)


def test_a_state_dictionary_loads_across_ranks_and_ends_a_merge():
    model, twin = stir_of(network()), network()
    adapt(twin, rank=1)
    merge(twin)
    twin.load_state_dict(model.state_dict())
    assert describe(twin).layers == describe(model).layers
    assert torch.equal(twin(X), model(X))


def test_converting_leaves_adapted_layers_alone():
    model = stir_of(network())
    expected = model(X)
    densify(model)
    report = factorize(model, rank=0.5)
    assert not report.layers
    assert set(report.left) == set(LAYERS)
    assert torch.equal(model(X), expected)
    assert describe(model).stored > 0


# A warning of the compiler about its own code.
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*should not be:DeprecationWarning")
@pytest.mark.parametrize("training", [True, False])
def test_adapted_layers_compile_without_breaks(training):
    model = stir_of(network()).train(training)
    expected = model(X)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(X)
    torch.testing.assert_close(compiled, expected)
    compiled.sum().backward()
    found = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    expected.sum().backward()
    torch.testing.assert_close(found, [p.grad for p in model.parameters() if p.requires_grad])


@torch.no_grad()
def test_adapted_layers_are_exported():
    model = stir_of(network()).eval()
    program = torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(X[:3]), model(X[:3]))


def test_an_adapted_model_made_on_meta_loads():
    model = stir_of(network())
    with torch.device("meta"):
        twin = network()
    adapt(twin, rank=1)
    twin.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(twin(X), model(X))


def test_updates_in_float32_train_under_autocast():
    model = stir_of(network().float())
    with torch.autocast("cpu", torch.bfloat16):
        y = model(X.float())
    y.float().sum().backward()
    torch.testing.assert_close(y.float(), model(X.float()), rtol=5e-2, atol=5e-2)
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in model.parameters() if p.requires_grad)


def test_hooks_stay():
    model = network()
    seen = []
    model[4].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    adapt(model, rank=2)
    model(X)
    assert seen == [(5, 10)]


# Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"include": ["9"]}, "no layer is named '9'; these can have an adapter: \\['0', '2', '4', '6'\\]"),
        ({"exclude": ["nothing*"]}, "no layer is named 'nothing\\*'"),
        ({"include": ["1"]}, "'1' cannot have .* a ReLU has no adapter"),
        ({"trainable": ["7.weight"]}, "no parameter is named '7.weight'"),
        ({"include": ["1*"]}, "no layer would get"),
        ({"rank": 0}, "0: ranks must be at least 1"),
        ({"rank": 1.5}, "0: a rank given as a fraction"),
        ({"rank": (2,)}, "0: "),
        ({"dropout": 1.0}, "dropout must lie"),
        ({"name": "a.b"}, "name of an adapter"),
        ({"name": "keys"}, "name of an adapter"),
        ({"name": "training"}, "name of an adapter"),
        ({"scale": float("nan")}, "scale must be finite"),
    ],
)
def test_bad_arguments_leave_the_model_as_it_was(arguments, message):
    model = network()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        adapt(model, **arguments)
    unchanged(model, before)


def test_patterns_may_come_one_by_one_but_not_as_a_string():
    model = network()
    for name in ("include", "exclude", "trainable"):
        with pytest.raises(TypeError, match=f"{name} must be a sequence .*'46'"):
            adapt(model, rank=2, **{name: "46"})
    report = adapt(model, rank=2, include=iter(["0", "4", "6"]), exclude=iter(["4"]), trainable=iter(["2.*"]))
    assert [layer.name for layer in report.layers] == ["0", "6"]
    assert model[2].weight.requires_grad


def test_a_model_with_a_lazy_layer_is_adapted_after_a_first_pass():
    model = nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(6))
    with pytest.raises(ValueError, match=r"'1\.weight' has no shape"):
        adapt(model, rank=2)
    assert all(p.requires_grad for p in model.parameters())
    adapt(model, rank=2, trainable=["1.*"])
    unadapt(model)
    model(torch.randn(2, 3))
    assert len(adapt(model, rank=2).layers) == 2


def test_a_further_adapter_leaves_the_head_trainable():
    model = network()
    adapt(model, rank=2, include=["0"], trainable=["6.*"])
    adapt(model, rank=2, include=["4"], name="two")
    assert model[6].weight.requires_grad
    assert not any(p.requires_grad for p in (model[4].weight, model[4].bias, model[2].weight))
    adapt(model, rank=2, include=["6"], name="three")
    assert not model[6].weight.requires_grad
    unadapt(model)
    assert all(p.requires_grad for p in model.parameters())


def test_layers_that_cannot_be_adapted_are_left_with_a_reason():
    class Own(nn.Linear):
        pass

    shared = nn.Linear(6, 6)
    model = nn.ModuleDict(
        {"own": Own(6, 6), "grouped": nn.Conv2d(4, 4, 3, groups=2), "words": nn.Embedding(6, 6)}
    )
    model["head"], model["good"] = shared, nn.Linear(6, 6)
    model["words"].weight = shared.weight
    report = adapt(model, rank=2)
    assert [layer.name for layer in report.layers] == ["good"]
    assert report.left == {"grouped": "it has 2 groups", "head": "it shares its weight with 'words'"}
    with pytest.raises(ValueError, match="has an adapter of the name 'default'"):
        adapt(model, include=["good"])
    for name in ("own", "grouped", "words", "head"):
        with pytest.raises(ValueError, match=f"{name!r} cannot have"):
            adapt(model, include=[name], name="other")


def test_unknown_adapters_are_named():
    model = network()
    for function in (unadapt, activate, deactivate, merge, unmerge, describe):
        with pytest.raises(ValueError, match="the model has no adapters"):
            function(model)
    adapt(model, rank=2)
    for function in (unadapt, activate, deactivate, describe):
        with pytest.raises(ValueError, match="no adapter 'other'; it has \\['default'\\]"):
            function(model, "other")


@pytest.mark.parametrize("change", ["fuse", "factorize", "nothing"])
def test_unadapt_unfreezes_parameters_that_were_renamed(change):
    model = nn.Sequential(
        tenfold.nn.Conv2d(3, 8, 3, rank=2),
        nn.BatchNorm2d(8),
        nn.Linear(16, 16),
        nn.MultiheadAttention(16, 4),
    )
    adapt(model, rank=2, include=["2"])
    if change == "fuse":
        assert tenfold.nn.fuse_normalization(model) == 1
    elif change == "factorize":
        factorize(model, rank=4, include=["3"])
    unadapt(model)
    assert all(p.requires_grad for p in model.parameters())
    assert not adapter_names(model)


def test_densify_keeps_the_updates_of_the_projections_of_attention():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)).double().eval()
    factorize(model, rank=2, exclude=["*.q_proj"])
    adapt(model, rank=2, include=["*.q_proj"])
    stir(model)
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    expected = model(x)
    with pytest.raises(ValueError, match="q_proj is of the type AdaptedLinear"):
        model[0].self_attn.to_dense()
    densify(model)
    torch.testing.assert_close(model(x), expected)
    assert type(model[0].self_attn.k_proj) is type(model[0].linear1) is nn.Linear
    merge(model)
    unadapt(model)
    densify(model)
    assert type(model[0].self_attn) is nn.MultiheadAttention
    torch.testing.assert_close(model(x), expected)


def test_new_values_of_the_updates_alone_end_a_merge():
    model = stir_of(network())
    expected = model(X)
    updates = {key: value.clone() for key, value in model.state_dict().items() if "adapters" in key}
    with torch.no_grad():
        model[0].adapters["default"].update.weight.mul_(2.0)
    merge(model)
    model.load_state_dict(updates, strict=False)
    torch.testing.assert_close(model(X), expected)


def test_a_layer_with_a_forward_method_of_its_own_is_left():
    model = network()
    once = model[4].forward
    model[4].forward = lambda x: 2.0 * once(x)
    expected = model(X)
    report = adapt(model, rank=2)
    assert "forward method of its own" in report.left["4"]
    torch.testing.assert_close(model(X), expected)
