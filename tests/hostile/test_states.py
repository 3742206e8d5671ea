"""Forged state dictionaries, given to models and optimizers directly: all or nothing.

The default run tries 200 of each kind, ``pytest -m deep tests/hostile`` 2,000, others in every run.
"""

import copy
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn

from tenfold.nn import (
    AveragedModel,
    Linear,
    TuckerConv2d,
    factor_state_dict,
    load_factor_state_dict,
    unchanged_on_error,
)
from tenfold.optim import (
    TDLRT,
    BudgetAdaptation,
    RankAdaptation,
    RiemannianAdamW,
    RiemannianCG,
    RiemannianLBFGS,
    RiemannianSGD,
    TangentMuon,
)
from tests.hostile import mutations
from tests.hostile.limits import headroom, ran_out
from tests.hostile.snapshot import everything, same

X = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    body = nn.Sequential(TuckerConv2d(2, 4, 3, rank=2), nn.Flatten())
    train = Linear(8, 6, rank=2, format="tensor-train")
    return nn.Sequential(body, Linear(16, 8, rank=2), train, nn.Linear(6, 3))


def attempt(load, model, *parts):
    """Whether a load succeeded; if it failed, it is as it should be."""
    before = everything(model, *parts)
    try:
        with headroom(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load()
    except (ValueError, RuntimeError) as caught:
        error = caught
    else:
        return True
    assert not ran_out(error), f"memory was asked for: {error!r}"
    assert str(error)
    same(before, model, *parts)
    return False


def fuzz(inputs, check, number, reproducible):
    tried = accepted = 0

    @settings(
        max_examples=number + number // 2,
        derandomize=reproducible,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def property(state):
        nonlocal tried, accepted
        if tried < number:
            tried += 1
            accepted += check(state.value)

    property()
    print(f"{tried} states, {accepted} accepted")
    return tried


# Models --------------------------------------------------------------------------------------


def check_packed(state):
    model = network()

    def load():
        with unchanged_on_error(model):
            model.load_state_dict(state)

    if attempt(load, model):
        assert model(X).shape == (5, 3)
        return True
    return False


def check_factors(state):
    model = network()
    if attempt(lambda: load_factor_state_dict(model, state), model):
        assert model(X).shape == (5, 3)
        return True
    return False


def check_average(state):
    average = AveragedModel(network(), decay=0.5)

    def load():
        with unchanged_on_error(average):
            average.load_state_dict(state)

    if attempt(load, average):
        assert average(X).shape == (5, 3)
        return True
    return False


def larger():
    model = network()
    model[1] = Linear(16, 8, rank=3)
    return model


MODELS = {
    "packed": (check_packed, lambda: dict(larger().state_dict())),
    "factors": (check_factors, lambda: factor_state_dict(larger())),
    "average": (check_average, lambda: dict(AveragedModel(larger()).state_dict())),
}

# Optimizers ----------------------------------------------------------------------------------

TOL = RankAdaptation(tol=0.1, every=2)
OPTIMIZERS = {
    "sgd": lambda p: RiemannianSGD(p, lr=0.01, momentum=0.9, rank_adaptation=TOL),
    "adamw": lambda p: RiemannianAdamW(p, lr=0.01, amsgrad=True, rank_adaptation=TOL),
    "muon": lambda p: TangentMuon(p, lr=0.01, rank_adaptation=BudgetAdaptation(compression=0.1, every=2)),
    "tdlrt": lambda p: TDLRT(p, lr=0.01, momentum=0.9, rank_adaptation=TOL, integrator="parallel"),
    "cg": lambda p: RiemannianCG(p, max_iter=2),
    "lbfgs": lambda p: RiemannianLBFGS(p, max_iter=2, history_size=2),
}


def trained(kind):
    """A model, an optimizer and the states of both after three steps."""
    model = network()
    optimizer = OPTIMIZERS[kind](model.parameters())
    for _ in range(3):
        step(model, optimizer, kind)
    return copy.deepcopy(dict(model.state_dict())), copy.deepcopy(optimizer.state_dict())


def step(model, optimizer, kind):
    def closure():
        optimizer.zero_grad()
        loss = model(X).square().sum()
        loss.backward()
        return loss

    if kind in ("cg", "lbfgs"):
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()


def check_optimizer(kind, weights):
    def check(state):
        model = network()
        optimizer = OPTIMIZERS[kind](model.parameters())
        model.load_state_dict(weights)
        if not attempt(lambda: optimizer.load_state_dict(state), model, optimizer):
            return False
        for _ in range(2):
            try:
                step(model, optimizer, kind)
            except ValueError:  # absurd but finite numbers may overflow, which steps refuse
                break
        return True

    return check


def tried_on(kind, number, reproducible):
    if kind in MODELS:
        check, state = MODELS[kind][0], MODELS[kind][1]()
    else:
        weights, state = trained(kind)
        check = check_optimizer(kind, weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert check(state)
        return fuzz(mutations.forged(state, "tensors"), check, number, reproducible)


KINDS = [*MODELS, *OPTIMIZERS]


@pytest.mark.parametrize("kind", KINDS)
def test_forged_states_change_nothing(kind):
    assert tried_on(kind, 200, reproducible=True) >= 200


@pytest.mark.deep
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_forged_states(kind):
    assert tried_on(kind, 2_000, reproducible=False) >= 2_000
