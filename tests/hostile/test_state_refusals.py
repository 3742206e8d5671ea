"""State dictionaries that do not fit, each with the reason that is given, and nothing changed."""

import copy

import pytest
import torch
from torch import nn

from tenfold.nn import AveragedModel, Linear, unchanged_on_error
from tenfold.optim import RankAdaptation, RiemannianAdamW, RiemannianCG
from tenfold.optim.rank_policy import policy_from_state
from tests.hostile.mutations import nested
from tests.hostile.snapshot import everything, same


def test_a_third_layer_that_does_not_fit_leaves_the_first_two():
    model = nn.Sequential(Linear(6, 6, rank=2), nn.BatchNorm1d(6), nn.Linear(6, 3))
    other = nn.Sequential(Linear(6, 6, rank=3), nn.BatchNorm1d(6), nn.Linear(6, 4))
    before = everything(model)
    with pytest.raises(RuntimeError, match="size mismatch"), unchanged_on_error(model):
        model.load_state_dict(other.state_dict())
    same(before, model)
    assert model[0].rank == (2,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(2, 24)}, r"saved point has the shape \(2, 24\)"),
        ({"weight": torch.zeros(24, dtype=torch.complex64)}, "complex64"),
        ({"weight": torch.zeros(1).expand(24)}, "only 1 numbers are there"),
        ({"weight": 1.0}, "must be a tensor, not float"),
        ({"weight_rank": torch.tensor([2.0])}, "not of whole numbers"),
        ({"weight_rank": torch.tensor([True])}, "not of whole numbers"),
        ({"weight_rank": torch.tensor(2)}, r"has the shape \(\)"),
        ({"weight_rank": torch.tensor([2]).expand(2**31)}, r"has the shape \(2147483648,\)"),
        ({"weight_rank": torch.tensor([2**31])}, "feasible"),
        ({"weight_rank": torch.tensor([0])}, "at least 1"),
        ({"weight_rank": [2]}, "must be a tensor, not list"),
    ],
)
@pytest.mark.parametrize("assign", [False, True])
def test_a_weight_that_does_not_fit_is_left_alone(change, message, assign):
    layer = Linear(6, 4, rank=2, bias=False)
    before = everything(layer)
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict({**layer.state_dict(), **change}, assign=assign)
    same(before, layer)


def test_an_average_counts_from_zero():
    average = AveragedModel(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="n_averaged must not be negative, got -1"):
        average.load_state_dict({**average.state_dict(), "n_averaged": torch.tensor(-1)})


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"policy": "os.system"}, "'os.system' is not known"),
        ({"policy": "RankAdaptation", "tol": 0.1, "harm": 1}, "unexpected keyword"),
        ({"policy": "RankAdaptation", "tol": 0.1, "every": 2.5}, "every must be an integer"),
        ({"policy": "RankAdaptation", "tol": 0.1, "min_rank": None}, "min_rank must be"),
        ({"policy": "RankAdaptation", "tol": 0.1, "hysteresis": float("nan")}, "hysteresis"),
        ({"policy": "RankAdaptation", "tol": 0.1, "oversampling": 0.5}, "oversampling must be an integer"),
        ({"policy": ["RankAdaptation"]}, "must be a number"),
        ("RankAdaptation", "must be a mapping"),
    ],
)
def test_a_policy_that_is_none(state, message):
    with pytest.raises(ValueError, match=message):
        policy_from_state(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["param_groups"].append({}), "2 parameter groups, the optimizer 1"),
        (lambda s: s["param_groups"][0].update(params=[0]), "has 1 parameters"),
        (lambda s: s["param_groups"][0].update(params=[0, 0]), "names a parameter twice"),
        (lambda s: s["param_groups"][0].pop("eps"), "has no 'eps'"),
        (lambda s: s["param_groups"][0].update(x=nested(1000)), r"param_groups\[0\]"),
        (lambda s: s["param_groups"][0].update(rank_adaptation=nested(1000)), "must be a mapping"),
        (lambda s: s["state"].update({7: {}}), "no parameter of it"),
        (lambda s: s["state"][0].pop("exp_avg_sq"), "has no exp_avg_sq"),
        (lambda s: s["state"].update({1: {"x": 1}}), "state of parameter 1 has no step"),
        (lambda s: s["state"][0].update(step=-1), "step of parameter 0"),
        (lambda s: s["state"][0].update(exp_avg=None), "must be a tensor"),
        (lambda s: s["state"][0]["exp_avg"].fill_(torch.inf), "NaN or infinity"),
        (lambda s: s["state"][0].update(master=torch.zeros(10**6)), "has the shape"),
    ],
)
def test_state_of_an_optimizer_that_does_not_fit(change, message):
    layer = Linear(6, 4, rank=2)
    optimizer = RiemannianAdamW(layer.parameters(), rank_adaptation=RankAdaptation(tol=0.1))
    layer(torch.randn(3, 6)).sum().backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    change(state)
    before = everything(layer, optimizer)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    same(before, layer, optimizer)


def test_state_of_a_line_search_that_does_not_fit():
    layer = Linear(6, 4, rank=2, bias=False)
    optimizer = RiemannianCG(layer.parameters())
    state = optimizer.state_dict()
    for change in (
        {"last_curvature": 0.0},
        {"max_iter": 0},
        {"decrease": 2.0},
        {"tolerance_grad": -1.0},
        {"curvature": "x"},
    ):
        with pytest.raises(ValueError, match=next(iter(change))):
            optimizer.load_state_dict({**state, "param_groups": [{**state["param_groups"][0], **change}]})
