"""Factorizing models and declaring parameters."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import tenfold
from tenfold.manifolds import TensorTrainManifold, TuckerManifold
from tenfold.nn import (
    Embedding,
    Linear,
    MultiheadAttention,
    TuckerConv2d,
    TuckerLinear,
    declare,
    densify,
    factorize,
    low_rank_parameters,
)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def test_full_rank_reproduces_the_model():
    model, x = network().double().eval(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    expected = model(x)
    report = factorize(model, rank=1.0)
    torch.testing.assert_close(model(x), expected)
    assert {layer.name: type(model.get_submodule(layer.name)) for layer in report.layers} == {
        "0": TuckerConv2d,
        "2.0": TuckerConv2d,
        "6": TuckerLinear,
    }
    assert report.left == {"3": "it has 2 groups"}
    assert not model[0].training


def test_names_patterns_and_report():
    model = network()
    report = factorize(model, rank=0.5, include=["2.*", "6"], exclude=["6"])
    assert [layer.name for layer in report.layers] == ["2.0"]
    layer = report.layers[0]
    assert (layer.rank, layer.stored, layer.dense) == ((4, 4), 4 * 4 * 9 + 2 * 8 * 4, 8 * 8 * 9)
    assert report.compression == pytest.approx(1 - layer.stored / layer.dense)
    assert "2.0" in str(report)
    assert "6" in report.left
    assert [name for name, _ in low_rank_parameters(model)] == ["2.0.weight"]


def test_random_start_draws_new_weights():
    model = network()
    dense = model[2][0].weight.detach().clone()
    factorize(model, rank=1.0, init="random")
    assert (model[2][0].dense_weight() - dense).norm() > 0.5 * dense.norm()


@pytest.mark.parametrize(
    "layer", [nn.Linear(4, 4), nn.Conv2d(3, 4, 3), nn.Embedding(4, 4), nn.MultiheadAttention(4, 2)]
)
def test_a_layer_by_itself_is_refused(layer):
    with pytest.raises(ValueError, match=rf"tenfold\.nn\.{type(layer).__name__}\.from_dense"):
        factorize(layer, rank=1)


@pytest.mark.parametrize("alone", [False, True])
def test_hooks_go_on_with_the_dense_layer(alone):
    layer, calls = Linear(4, 4, rank=1), []
    handles = [
        layer.register_forward_pre_hook(lambda *_: calls.append("before")),
        layer.register_forward_hook(lambda m, a, k, y: calls.append(k), with_kwargs=True),
        layer.register_full_backward_hook(lambda *_: calls.append("backward")),
    ]
    dense = densify(layer) if alone else densify(nn.ModuleList([layer]))[0]
    assert type(dense) is nn.Linear
    dense(torch.ones(2, 4, requires_grad=True)).sum().backward()
    assert calls == ["before", {}, "backward"]
    for handle in handles:
        handle.remove()
    dense(torch.ones(2, 4, requires_grad=True)).sum().backward()
    assert len(calls) == 3


@pytest.mark.parametrize("alone", [False, True])
def test_a_layer_with_a_forward_method_of_its_own_is_not_made_dense(alone):
    model = nn.Sequential(Linear(4, 4, rank=1), Linear(4, 4, rank=1))
    model[1].forward = lambda x: x
    with pytest.raises(ValueError, match=r"Linear.* has a forward method of its own"):
        densify(model[1] if alone else model)
    assert type(model[0]) is Linear


def test_layers_that_share_a_parameter_share_the_dense_one():
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "words": Embedding(7, 4, rank=2),
            "out": Linear(4, 7, rank=2),
            "padded": Embedding(7, 4, rank=2, padding_idx=3),
            "other": Linear(4, 7, rank=2),
        }
    )
    model["out"].weight = model["padded"].weight = model["words"].weight
    model["other"].bias = model["out"].bias
    expected = {name: layer.dense_weight().detach() for name, layer in model.items()}
    densify(model)
    assert model["out"].weight is model["words"].weight
    assert model["other"].bias is model["out"].bias
    assert not model["padded"].weight[3].any()
    torch.testing.assert_close({name: layer.weight.detach() for name, layer in model.items()}, expected)
    assert len(list(model.parameters())) == 4


@pytest.mark.parametrize(
    "change",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: prune.l1_unstructured(layer, "bias", 0.5),
    ],
    ids=["weight_norm", "spectral_norm", "pruned weight", "pruned bias"],
)
def test_weights_computed_from_other_parameters_are_refused(change):
    for make in (lambda layer: Linear.from_dense(layer, tol=0.1), lambda layer: Linear.like(layer, rank=1)):
        with pytest.raises(ValueError, match=r"(weight|bias) of the \w*Linear is computed from other"):
            make(change(nn.Linear(4, 4)))
    attention = nn.MultiheadAttention(4, 2)
    change(attention.out_proj)
    with pytest.raises(ValueError, match="computed from other parameters"):
        MultiheadAttention.from_dense(attention, rank=1)


@pytest.mark.parametrize(
    "options", [{"exclude": ["7"]}, {"include": ["nothing*"]}, {"init": "zeros"}, {"rank": 2.0}]
)
def test_errors_leave_the_model_alone(options):
    model = network()
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match=r"7|nothing|zeros|rank"):
        factorize(model, **options)
    assert {name: type(module) for name, module in model.named_modules()} == before


def test_subclasses_of_layers_stay_as_they_are():
    class Special(nn.Linear):
        pass

    model = nn.Sequential(Special(3, 4))
    assert "Special" in factorize(model).left["0"]


def test_declared_parameter_carries_its_rank():
    class Net(nn.Module):
        def __init__(self, rank):
            super().__init__()
            declare(self, "first", TuckerManifold((4, 4, 4), rank))
            declare(self, "second", TensorTrainManifold((4, 4, 4), rank), dtype=torch.float64)

    saved, fresh = Net(2), Net(3)
    assert set(saved.state_dict()) == {"first", "first_rank", "second", "second_rank"}
    fresh.load_state_dict(saved.state_dict())
    assert fresh.first.manifold == saved.first.manifold
    assert fresh.second.manifold.rank == (2, 2)
    assert torch.equal(fresh.second, saved.second)
    with pytest.raises(ValueError, match="packed vector"):
        declare(saved, "third", TuckerManifold((4, 4), 1), torch.zeros(3))


def test_tenfold_exposes_its_rooms():
    assert tenfold.nn.TuckerLinear is TuckerLinear
    assert tenfold.optim.RiemannianSGD
    assert tenfold.__version__
