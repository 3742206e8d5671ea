"""Policies: the same protocol, different wishes."""

import copy
import dataclasses
import itertools

import geoopt
import pytest
import torch

from tenfold.manifolds import FixedRankManifold, TensorTrainManifold, TuckerManifold, rank_tuple
from tenfold.optim import (
    TDLRT,
    BudgetAdaptation,
    EnergyAdaptation,
    Pending,
    RankAdaptation,
    RiemannianSGD,
)
from tests.optim.problems import MANIFOLDS, dense, descend, distance, generator, parameter, target


def pending(manifold, seed=0):
    x = manifold.random(dtype=torch.float64, generator=generator(seed))
    return Pending(manifold, manifold.truncation(x))


def of_spectrum(values):
    """A matrix of 20 x 20 with these singular values."""
    manifold = FixedRankManifold((20, 20), len(values))
    left, right = manifold.unpack_tensor(manifold.random(generator=generator(0)))[1:]
    return Pending(manifold, manifold.truncation(manifold.pack_point(values.diag(), left, right)))


def error_of(item, ranks):
    new, y = item.truncation.to(ranks)
    exact = item.manifold.to_dense(item.manifold.random(dtype=torch.float64, generator=generator(0)))
    return ((new.to_dense(y) - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
@pytest.mark.parametrize("tol", [0.0, 0.1, 0.4, 0.8])
def test_energy_bounds_the_whole_error_and_beats_nothing_smaller(manifold, tol):
    item = pending(manifold)
    [ranks] = EnergyAdaptation(tol).decide([item], 1)
    assert error_of(item, ranks) <= tol + 1e-12
    [each] = RankAdaptation(tol).decide([item], 1)
    # One tolerance shared by all ranks discards no more than one tolerance for each of them.
    assert all(a >= b for a, b in zip(ranks, each, strict=True))


@pytest.mark.parametrize("compression", [0.3, 0.6, 0.8])
def test_budget_is_met_and_used(compression):
    manifolds = [
        TuckerManifold((30, 20, 3, 3), (20, 15), modes=(0, 1)),
        FixedRankManifold((40, 30), 20),
        TensorTrainManifold((8, 8, 8), (8, 8)),
    ]
    items = [pending(m, k) for k, m in enumerate(manifolds)]
    decided = BudgetAdaptation(compression).decide(items, 1)
    stored = sum(item.truncation.to(r)[0].size for item, r in zip(items, decided, strict=True))
    allowed = (1 - compression) * sum(m.dense_size for m in manifolds)
    assert stored <= allowed
    assert stored >= 0.9 * allowed


def test_budget_takes_from_where_energy_is_small():
    items = [of_spectrum(torch.ones(10)), of_spectrum(10.0 ** -torch.arange(10.0))]
    (strong_rank,), (weak_rank,) = BudgetAdaptation(0.4).decide(items, 1)
    assert weak_rank < 4
    assert strong_rank >= 8


def faint_and_strong():
    """A layer whose second direction is next to nothing, beside one that would take its place."""
    return [of_spectrum(10.0 ** -(3.0 ** torch.arange(6.0))), of_spectrum(torch.ones(6))]


def test_budget_starves_no_layer_unless_it_is_told_to():
    policy = BudgetAdaptation(0.65)
    assert policy.decide(faint_and_strong(), 1) == [(2,), (4,)]
    told = dataclasses.replace(policy, min_rank=1)
    assert told.decide(faint_and_strong(), 1) == [(1,), (5,)]


def test_budget_leaves_a_rank_that_cannot_be_two():
    item = pending(TuckerManifold((30, 20, 1), (8, 8, 1)))
    [ranks] = BudgetAdaptation(0.7).decide([item], 1)
    assert ranks[2] == 1


def test_unreachable_budget_is_refused_and_changes_nothing():
    p, goal = parameter(MANIFOLDS[0]), target(MANIFOLDS[0])
    x = p.detach().clone()
    optimizer = RiemannianSGD([p], lr=0.1, rank_adaptation=BudgetAdaptation(0.99))
    with pytest.raises(ValueError, match="lower min_rank or compression"):
        descend(optimizer, p, goal, 1)
    assert torch.equal(p, x)


def test_tolerance_is_annealed():
    policy = RankAdaptation(0.2, final_tol=0.002, start=10, stop=30)
    assert policy.tolerance(10) == pytest.approx(0.2)
    assert policy.tolerance(20) == pytest.approx(0.02)
    assert policy.tolerance(30) == pytest.approx(0.002)
    assert RankAdaptation(0.0, final_tol=0.2, stop=10).tolerance(5) == pytest.approx(0.1)
    assert RankAdaptation(0.2, final_tol=0.1, start=5, stop=5).tolerance(9) == 0.2  # no decision on the way
    with pytest.raises(ValueError, match="give stop"):
        RankAdaptation(0.1, final_tol=0.01)


@pytest.mark.parametrize(
    ("start", "every", "stop", "last"), [(0, 1, 10, 10), (3, 4, 14, 11), (5, 10, 15, 15)]
)
def test_goals_are_reached_in_the_last_decision(start, every, stop, last):
    beat = {"start": start, "every": every, "stop": stop}
    policies = (
        RankAdaptation(0.2, final_tol=0.002, **beat),
        BudgetAdaptation(0.5, final_compression=0.9, **beat),
    )
    due = [step for step in range(1, 30) if policies[0].due(step)]
    assert due[-1] == last
    assert policies[0].tolerance(last) == pytest.approx(0.002)
    assert policies[1].budget(last) == pytest.approx(0.9)
    assert policies[0].progress(start) == 0
    assert policies[0].progress(stop) == 1
    shares = [1 - policies[1].budget(step) for step in (start, *due)]
    ratios = [b / a for a, b in itertools.pairwise(shares)]
    assert shares[0] == pytest.approx(0.5)
    assert ratios == pytest.approx([0.2 ** (1 / len(due))] * len(due))
    assert BudgetAdaptation(0.5, **beat).budget(last) == 0.5


def test_a_budget_that_falls_is_met_in_every_decision():
    shapes = (12, 10, 8), (16, 9, 7)
    params = [parameter(TuckerManifold(shape, 6)) for shape in shapes]
    goals = [target(p.manifold) for p in params]
    policy = BudgetAdaptation(0.5, final_compression=0.9, every=2, stop=9)
    optimizer = RiemannianSGD(params, lr=0.1, momentum=0.5, rank_adaptation=policy)
    dense_size = sum(p.manifold.dense_size for p in params)
    stored = []
    for step in range(1, 13):
        optimizer.zero_grad()
        sum(distance(p, goal) for p, goal in zip(params, goals, strict=True)).backward()
        optimizer.step()
        stored.append(sum(p.manifold.size for p in params))
        if policy.due(step):
            assert stored[-1] <= (1 - policy.budget(step)) * dense_size
    assert stored[1] > stored[3] > stored[7] == stored[-1]
    assert stored[-1] <= 0.1 * dense_size


def test_multiples_and_hysteresis():
    manifold = TuckerManifold((40, 30, 9), (20, 12, 9))
    item = pending(manifold)
    [plain] = RankAdaptation(0.3).decide([item], 1)
    [eight] = RankAdaptation(0.3, multiple_of=8).decide([item], 1)
    assert all(r % 8 == 0 or r == full for r, full in zip(eight, (20, 12, 9), strict=True))
    assert all(r >= p for r, p in zip(eight, plain, strict=True))
    [lazy] = RankAdaptation(0.3, hysteresis=1.0).decide([item], 1)
    assert lazy == manifold.rank != plain


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
@pytest.mark.parametrize("policy", [RankAdaptation, EnergyAdaptation])
def test_spare_directions_are_kept_until_the_last_decision(manifold, policy):
    item = pending(manifold)
    [plain] = policy(0.4).decide([item], 4)
    more = policy(0.4, oversampling=2, every=2, stop=9)
    assert [more.spare(step) for step in (2, 6, 8)] == [2, 2, 0]
    [kept] = more.decide([item], 6)
    assert kept == tuple(
        min(rank + 2, full, values.shape[-1])
        for rank, full, values in zip(
            plain, rank_tuple(manifold.full_rank), item.truncation.singular_values, strict=True
        )
    )
    new, x = item.truncation.to(kept)
    assert new.check_point_on_manifold(x)
    assert more.decide([item], 8) == [plain]
    [forever] = policy(0.4, oversampling=2).decide([item], 10**6)
    assert forever == kept


def test_spare_directions_of_a_budget_count_in_it():
    strong, weak = FixedRankManifold((20, 20), 10), FixedRankManifold((20, 20), 10)
    items = []
    for manifold, values in ((strong, 0.5 ** torch.arange(10.0)), (weak, 0.1 ** torch.arange(10.0))):
        left, right = manifold.unpack_tensor(manifold.random(generator=generator(0)))[1:]
        x = manifold.pack_point(values.diag(), left, right)
        items.append(Pending(manifold, manifold.truncation(x)))
    plain, more = BudgetAdaptation(0.3), BudgetAdaptation(0.3, oversampling=4, stop=9)
    (strong_before,), (weak_before,) = plain.decide(items, 1)
    (strong_after,), (weak_after,) = more.decide(items, 1)
    assert weak_after > weak_before
    assert strong_after < strong_before
    for decided in (plain.decide(items, 1), more.decide(items, 1)):
        sizes = [item.truncation.to(ranks)[0].size for item, ranks in zip(items, decided, strict=True)]
        assert 0.6 * 800 < sum(sizes) <= 0.7 * 800
    assert more.decide(items, 9) == plain.decide(items, 9)


@pytest.mark.parametrize("policy", [RankAdaptation(0.1), EnergyAdaptation(0.1), BudgetAdaptation(0.01)])
def test_spare_directions_are_more_than_rounding(policy):
    manifold = FixedRankManifold((10, 9), 6)
    left, right = manifold.unpack_tensor(manifold.random(generator=generator(0)))[1:]
    x = manifold.pack_point(torch.tensor([1.0, 1e-3, 1e-4, 1e-7, 1e-8, 0.0]).diag(), left, right)
    items = [Pending(manifold, manifold.truncation(x)), pending(FixedRankManifold((10, 9), 6))]
    [(plain,), _] = policy.decide(items, 1)
    [(kept,), _] = dataclasses.replace(policy, oversampling=9).decide(items, 1)
    assert plain <= kept <= 3
    if not isinstance(policy, BudgetAdaptation):
        assert (plain, kept) == (1, 3)


@pytest.mark.parametrize("optimizer", [RiemannianSGD, TDLRT])
def test_ranks_come_back_where_spare_directions_have_the_time_to_grow(optimizer):
    manifold = TuckerManifold((12, 10, 9), 4)
    x = manifold.random(dtype=torch.float64, generator=generator(1))
    goal = manifold.to_dense(x)
    bases = manifold.unpack_tensor(manifold.random(dtype=torch.float64, generator=generator(2)))[1:]
    decay = 0.01 ** torch.arange(4, dtype=torch.float64)
    start = manifold.pack_point(torch.diag_embed(torch.diag(decay)) * decay[:, None, None], *bases)

    def trained(**options):
        p = geoopt.ManifoldParameter(start.clone(), manifold=manifold)
        policy = RankAdaptation(0.2, every=5, stop=295, **options)
        beat = {"core_steps": 5} if optimizer is TDLRT else {}
        steps = optimizer([p], lr=0.02, rank_adaptation=policy, **beat)

        def closure():
            steps.zero_grad()
            loss = distance(p, goal)
            loss.backward()
            return loss

        for _ in range(300):
            steps.step(closure)
        return p.manifold.rank, ((dense(p) - goal).norm() / goal.norm()).item()

    fallen, error = trained()
    assert max(fallen) < 4
    assert error > 0.3
    ranks, error = trained(oversampling=1)
    assert ranks == (4, 4, 4)
    assert error < 0.01


@pytest.mark.parametrize(
    "policy",
    [
        RankAdaptation(0.2, final_tol=0.1, stop=20, hysteresis=0.1, oversampling=1),
        EnergyAdaptation(0.2, multiple_of=2),
        BudgetAdaptation(0.3, every=2),
        BudgetAdaptation(0.3, oversampling=2),
        BudgetAdaptation(0.2, final_compression=0.4, every=2, stop=8),
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_every_policy_trains_and_travels_through_a_state_dict(policy):
    manifold = TuckerManifold((8, 7, 6), 3)
    p, goal = parameter(manifold), target(manifold)
    optimizer = RiemannianSGD([p], lr=0.3, momentum=0.5, rank_adaptation=policy)
    losses = descend(optimizer, p, goal, 8)
    assert losses[-1] < losses[0]
    assert torch.isfinite(dense(p)).all()
    state = copy.deepcopy(optimizer.state_dict())
    assert state["param_groups"][0]["rank_adaptation"]["policy"] == type(policy).__name__
    fresh = RiemannianSGD([p], lr=1.0)
    fresh.load_state_dict(state)
    assert fresh.param_groups[0]["rank_adaptation"] == policy
    state["param_groups"][0]["rank_adaptation"]["policy"] = "Unheard"
    with pytest.raises(ValueError, match="Unheard"):
        fresh.load_state_dict(state)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BudgetAdaptation(1.0), "compression"),
        (lambda: BudgetAdaptation(0.5, final_compression=0.4, stop=9), "final_compression must lie in"),
        (lambda: BudgetAdaptation(0.5, final_compression=1.0, stop=9), "final_compression must lie in"),
        (
            lambda: BudgetAdaptation(0.5, final_compression=0.9),
            "there is no decision between start=0 and stop=None",
        ),
        (lambda: BudgetAdaptation(0.5, final_compression=0.9, every=5, start=6, stop=10), "never reached"),
        (lambda: EnergyAdaptation(1.0), "tolerance"),
        (lambda: RankAdaptation(0.1, multiple_of=0), "multiple_of"),
        (lambda: RankAdaptation(0.1, hysteresis=-1.0), "hysteresis"),
        (lambda: RankAdaptation(0.1, min_rank=8, max_rank=4), "min_rank must not exceed max_rank=4, got 8"),
        (lambda: EnergyAdaptation(0.1, min_rank=0.5, max_rank=0.2), "min_rank"),
        (lambda: RankAdaptation(0.1, oversampling=-1), "oversampling must not be negative, got -1"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def uneven(scale):
    """A batch of a matrix of rank 1 and norm 1, and one of rank 4, equal singular values and norm 2 scale."""
    manifold = FixedRankManifold((8, 8), 4)
    x = manifold.random(2, manifold.size, dtype=torch.float64, generator=generator(0))
    core = torch.stack([torch.diag(torch.tensor([1.0, 0, 0, 0])), scale * torch.eye(4)]).to(x)
    return manifold, manifold.pack_point(core, *manifold.unpack_tensor(x)[1:])


def test_energy_bounds_the_error_of_every_member_of_a_batch():
    manifold, x = uneven(1e-3)
    truncation = manifold.truncation(x)
    [ranks] = EnergyAdaptation(0.05).decide([Pending(manifold, truncation)], 1)
    new, y = truncation.to(ranks)
    exact = manifold.to_dense(x)
    errors = (new.to_dense(y) - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    assert (errors <= 0.05).all()


def test_a_budget_goes_by_the_energy_relative_to_each_member_of_a_batch():
    other, decided = pending(FixedRankManifold((8, 8), 4), seed=3), []
    for scale in (1.0, 1e-3):
        manifold, x = uneven(scale)
        item = Pending(manifold, manifold.truncation(x))
        decided.append(BudgetAdaptation(0.4).decide([item, other], 1))
    assert decided[0] == decided[1]


def test_every_member_of_a_batch_counts_in_a_budget():
    manifold, other = FixedRankManifold((8, 8), 8), pending(FixedRankManifold((12, 12), 12), seed=3)
    x = manifold.random(dtype=torch.float64, generator=generator(0)).expand(5, -1)
    batch = Pending(manifold, manifold.truncation(x))
    decided = BudgetAdaptation(0.3).decide([batch, other], 1)
    stored = [item.manifold.with_rank(r).size for item, r in zip([batch, other], decided, strict=True)]
    assert 5 * stored[0] + stored[1] <= 0.7 * (5 * 64 + 144)
