"""Low-rank parameters in half precision: float32 linear algebra and a master copy."""

import copy
import io

import geoopt
import pytest
import torch

import tenfold
from tenfold.optim import (
    TDLRT,
    RankAdaptation,
    RiemannianAdam,
    RiemannianSGD,
    TangentMuon,
    clip_riemannian_norm_,
)
from tests.optim.problems import MANIFOLDS, descend, distance, generator, parameter, target

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
OPTIMIZERS = pytest.mark.parametrize(
    "make",
    [
        lambda p, **o: RiemannianSGD(p, lr=0.1, momentum=0.5, **o),
        lambda p, **o: RiemannianAdam(p, lr=0.02, **o),
        lambda p, **o: TangentMuon(p, lr=0.1, **o),
    ],
    ids=["SGD", "Adam", "Muon"],
)


def half(manifold, dtype, seed=0):
    return geoopt.ManifoldParameter(manifold.random(generator=generator(seed)).to(dtype), manifold=manifold)


@HALF
@OPTIMIZERS
@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_steps_follow_those_of_float32(manifold, make, dtype):
    """The gradients are taken at rounded weights, the steps add up in float32."""
    p, q = half(manifold, dtype), parameter(manifold, dtype=torch.float32)
    goal = target(manifold, dtype=torch.float32)
    for item in (p, q):
        optimizer = make([item])
        losses = descend(optimizer, item, goal.to(item.dtype), 10)
        assert losses[-1] < losses[0]
        if item is p:
            master = optimizer.state[p]["master"]
    assert master.dtype == torch.float32
    assert torch.equal(master.to(dtype), p.detach())
    assert manifold.check_point_on_manifold(master)
    dense = [manifold.to_dense(x.detach()) for x in (master, q)]
    assert (dense[0] - dense[1]).norm() < 0.05 * dense[1].norm()


def test_small_steps_add_up():
    """Steps below the spacing of bfloat16 are lost without the master copy."""
    manifold = MANIFOLDS[0]
    p, goal = half(manifold, torch.bfloat16), target(manifold).to(torch.bfloat16)
    rounded = p.detach().clone()
    optimizer = RiemannianSGD([p], lr=1e-5)
    first = descend(optimizer, p, goal, 1)[0]
    for _ in range(2):
        descend(optimizer, p, goal, 1)
    start = optimizer.state[p]["master"].clone()
    assert (p.detach() - rounded).norm() < 2e-2 * rounded.norm()
    descend(optimizer, p, goal, 300)
    travelled = (optimizer.state[p]["master"] - start).norm()
    assert travelled > 1e-3
    exact = distance(geoopt.ManifoldParameter(optimizer.state[p]["master"], manifold=manifold), goal.float())
    assert exact < first


@HALF
def test_ranks_change_and_the_copy_follows(dtype):
    manifold = MANIFOLDS[0]
    p, goal = half(manifold, dtype), target(manifold).to(dtype)
    optimizer = RiemannianSGD([p], lr=0.1, momentum=0.5, rank_adaptation=RankAdaptation(0.6, every=2))
    descend(optimizer, p, goal, 5)
    assert p.manifold.rank != manifold.rank
    assert p.dtype == dtype
    state = optimizer.state[p]
    assert state["master"].shape == state["momentum_buffer"].shape == p.shape
    assert state["momentum_buffer"].dtype == torch.float32


@OPTIMIZERS
def test_state_round_trips_without_rounding(make):
    manifold = MANIFOLDS[0]
    p, goal = half(manifold, torch.bfloat16), target(manifold).to(torch.bfloat16)
    optimizer = make([p])
    descend(optimizer, p, goal, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twin = copy.deepcopy(p)
    other = make([twin])
    other.load_state_dict(torch.load(file, weights_only=True))
    for name, value in optimizer.state[p].items():
        assert (
            value == other.state[twin][name]
            if not isinstance(value, torch.Tensor)
            else torch.equal(value, other.state[twin][name])
        )
    assert descend(optimizer, p, goal, 3) == descend(other, twin, goal, 3)
    assert torch.equal(optimizer.state[p]["master"], other.state[twin]["master"])


def test_weights_changed_by_hand_are_not_overwritten():
    manifold = MANIFOLDS[0]
    p, goal = half(manifold, torch.bfloat16), target(manifold).to(torch.bfloat16)
    optimizer = RiemannianSGD([p], lr=1e-6)
    descend(optimizer, p, goal, 2)
    other = half(manifold, torch.bfloat16, seed=9)
    with torch.no_grad():
        p.copy_(other)
    descend(optimizer, p, goal, 1)
    torch.testing.assert_close(
        manifold.to_dense(p.detach()), manifold.to_dense(other.detach()), rtol=0.05, atol=0.05
    )


def test_batches_equal_the_loop_and_stabilizing_keeps_the_copy():
    manifold = MANIFOLDS[0]
    found = []
    for foreach in (True, False):
        items = [half(manifold, torch.bfloat16, seed) for seed in range(3)]
        optimizer = RiemannianSGD(items, lr=0.1, momentum=0.9, foreach=foreach, stabilize=2)
        goal = target(manifold).to(torch.bfloat16)
        for _ in range(4):
            optimizer.zero_grad()
            sum(distance(p, goal) for p in items).backward()
            optimizer.step()
        for p in items:
            assert torch.equal(optimizer.state[p]["master"].to(p.dtype), p.detach())
        found.append(torch.stack([optimizer.state[p]["master"] for p in items]))
    torch.testing.assert_close(*found)


def test_clipping_measures_in_float32():
    manifold = MANIFOLDS[0]
    p, q = half(manifold, torch.bfloat16), parameter(manifold, dtype=torch.float32)
    for item in (p, q):
        distance(item, target(manifold).to(item.dtype)).backward()
    lengths = [clip_riemannian_norm_([item], 0.1) for item in (p, q)]
    torch.testing.assert_close(lengths[0], lengths[1], rtol=0.05, atol=0)
    torch.testing.assert_close(clip_riemannian_norm_([p], 1.0), torch.tensor(0.1), rtol=0.05, atol=0)


def test_a_network_in_bfloat16_trains():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        tenfold.nn.TuckerConv2d(1, 8, 3, padding=1, rank=0.5, dtype=torch.bfloat16),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        tenfold.nn.TuckerLinear(8 * 16, 4, rank=2, dtype=torch.bfloat16),
    )
    x = torch.randn(32, 1, 4, 4, dtype=torch.bfloat16)
    y = torch.arange(32) % 4
    optimizer = RiemannianSGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("integrator", ["parallel", "two-pass"])
def test_tdlrt_refuses_half_precision_and_changes_nothing(integrator):
    p = half(MANIFOLDS[0], torch.bfloat16)
    before = p.detach().clone()
    optimizer = TDLRT([p], lr=0.1, rank_adaptation=RankAdaptation(0.1), integrator=integrator)
    p.grad = torch.ones_like(p)
    with pytest.raises(TypeError, match=r"parameter 0 of group 0.*bfloat16"):
        optimizer.step(lambda: p.sum())
    assert torch.equal(p.detach(), before)
    assert not optimizer.state[p]


@HALF
def test_a_random_point_in_half_precision_is_a_rounded_one(dtype):
    manifold = MANIFOLDS[0]
    point = manifold.random(dtype=dtype, generator=generator(0))
    assert torch.equal(point, manifold.random(generator=generator(0)).to(dtype))


@pytest.mark.parametrize("lr", [0.1, 1e-3])
def test_large_sums_of_small_gradients_are_no_overflow(lr):
    """A million gradients of 0.1 add up to more than float16 can hold."""
    p = torch.nn.Parameter(torch.ones(1000, 1000, dtype=torch.float16))
    p.grad = torch.full_like(p, 0.1)
    RiemannianSGD([p], lr=lr).step()
    torch.testing.assert_close(p.detach(), torch.full_like(p, 1 - lr * 0.1))


def test_large_gradients_of_adapted_parameters_are_no_overflow():
    p = half(MANIFOLDS[0], torch.float16)
    p.grad = torch.full_like(p, 2000.0)
    RiemannianSGD([p], lr=1e-6, rank_adaptation=RankAdaptation(0.1)).step()
    assert p.isfinite().all()


def test_a_copy_is_dropped_when_the_model_leaves_half_precision():
    p = half(MANIFOLDS[0], torch.bfloat16)
    optimizer = RiemannianSGD([p], lr=0.1, rank_adaptation=RankAdaptation(0.5, start=2))
    descend(optimizer, p, target(MANIFOLDS[0]).to(torch.bfloat16), 2)
    p.data = p.data.float()
    p.grad = None
    descend(optimizer, p, target(MANIFOLDS[0], dtype=torch.float32), 2)
    assert p.manifold != MANIFOLDS[0]
    assert "master" not in optimizer.state[p]
    optimizer.load_state_dict(optimizer.state_dict())
