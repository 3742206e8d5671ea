"""RiemannianSGD on low-rank manifolds against dense oracles."""

import copy
import itertools

import geoopt
import pytest
import torch

from tenfold.manifolds import TuckerManifold
from tenfold.optim import RankAdaptation, RiemannianAdam, RiemannianSGD, TangentMuon
from tests.optim.problems import MANIFOLDS, dense, descend, distance, generator, parameter, target, toy

EXACT = RankAdaptation(tol=0.0)
"""Keeps the whole sum of point and step, so that steps can be compared with dense arithmetic."""


def euclidean(p, goal):
    return dense(p) - goal


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_step_is_the_retraction_of_the_riemannian_gradient_step(manifold):
    p, goal = parameter(manifold), target(manifold)
    x = p.detach().clone()
    rgrad = manifold.project_dense(x, euclidean(p, goal))
    descend(RiemannianSGD([p], lr=0.3), p, goal, 1)
    torch.testing.assert_close(p.detach(), manifold.retr(x, -0.3 * rgrad))


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_untruncated_step_is_dense_gradient_step_projected(manifold):
    """W+ = W - lr P(W) G, exactly."""
    p, goal = parameter(manifold), target(manifold)
    w, g = dense(p), euclidean(p, goal)
    projected = manifold.tangent_to_dense(p.detach(), manifold.project_dense(p.detach(), g))
    descend(RiemannianSGD([p], lr=0.3, rank_adaptation=EXACT), p, goal, 1)
    torch.testing.assert_close(dense(p), w - 0.3 * projected)


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_first_momentum_step_is_the_dampened_riemannian_gradient(manifold):
    p, goal = parameter(manifold), target(manifold)
    w = dense(p)
    projected = manifold.tangent_to_dense(p.detach(), manifold.project_dense(p.detach(), euclidean(p, goal)))
    optimizer = RiemannianSGD([p], lr=0.3, momentum=0.9, dampening=0.4, rank_adaptation=EXACT)
    descend(optimizer, p, goal, 1)
    torch.testing.assert_close(dense(p), w - 0.3 * 0.6 * projected)


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
@pytest.mark.parametrize("nesterov", [False, True], ids=["heavy-ball", "nesterov"])
def test_momentum_is_projected_onto_each_new_tangent_space(manifold, nesterov):
    """Three steps against the same recursion with dense tensors, at fixed rank and at changing ranks."""
    lr, mu = 0.2, 0.8
    for policy in (None, RankAdaptation(tol=0.2)):
        p, goal = parameter(manifold), target(manifold)
        optimizer = RiemannianSGD([p], lr=lr, momentum=mu, nesterov=nesterov, rank_adaptation=policy)
        momentum = torch.zeros_like(goal)
        for _ in range(3):
            here, x = p.manifold, p.detach().clone()
            to_tangent = lambda t, m=here, at=x: m.tangent_to_dense(at, m.project_dense(at, t))  # noqa: E731
            g = to_tangent(euclidean(p, goal))
            b = mu * to_tangent(momentum) + g
            direction = g + mu * b if nesterov else b
            step = here.project_dense(x, -lr * direction)
            new, y = (here, here.retr(x, step)) if policy is None else here.retr_adaptive(x, step, tol=0.2)
            momentum = b
            descend(optimizer, p, goal, 1)
            assert p.manifold == new
            torch.testing.assert_close(dense(p), new.to_dense(y))
            kept = new.tangent_to_dense(p.detach(), optimizer.state[p]["momentum_buffer"])
            torch.testing.assert_close(kept, new.tangent_to_dense(y, new.project_dense(y, b)))


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_weight_decay_is_decay_of_the_tensor(manifold):
    p, goal = parameter(manifold), target(manifold)
    w, g = dense(p), euclidean(p, goal)
    projected = manifold.tangent_to_dense(p.detach(), manifold.project_dense(p.detach(), g))
    optimizer = RiemannianSGD([p], lr=0.3, weight_decay=0.7, rank_adaptation=EXACT)
    descend(optimizer, p, goal, 1)
    torch.testing.assert_close(dense(p), w - 0.3 * (projected + 0.7 * w))


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_maximize_ascends(manifold):
    p, goal = parameter(manifold), target(manifold)
    ours, mirrored = parameter(manifold), RiemannianSGD([p], lr=0.1, momentum=0.5, maximize=True)
    up = RiemannianSGD([ours], lr=0.1, momentum=0.5)
    for _ in range(3):
        mirrored.zero_grad()
        distance(p, goal).backward()
        mirrored.step()
        up.zero_grad()
        (-distance(ours, goal)).backward()
        up.step()
    torch.testing.assert_close(p.detach(), ours.detach())


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
@pytest.mark.parametrize("lr", [0.2, 1.0, 1.8])
def test_untruncated_loss_falls_by_the_descent_lemma(manifold, lr):
    """L(W+) <= L(W) - lr (1 - lr l / 2) |P(W) G|^2 with l = 1, hence monotone for lr < 2 / l."""
    p, goal = parameter(manifold), target(manifold)
    optimizer = RiemannianSGD([p], lr=lr, rank_adaptation=EXACT)
    before = distance(p, goal).item()
    for _ in range(3):
        size = p.manifold.norm(p.detach(), p.manifold.project_dense(p.detach(), euclidean(p, goal))).item()
        after = descend(optimizer, p, goal, 1)[-1]
        assert after <= before - lr * (1 - lr / 2) * size**2 + 1e-10
        before = after


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_fixed_rank_loss_falls_monotonically(manifold):
    p, goal = parameter(manifold), target(manifold)
    losses = descend(RiemannianSGD([p], lr=0.5), p, goal, 30)
    assert all(b <= a + 1e-10 for a, b in itertools.pairwise(losses))


@pytest.mark.filterwarnings("ignore::tenfold.optim.IllConditionedWarning")
@pytest.mark.parametrize("decay", [1.0, 2.0, 10.0, 100.0])
@pytest.mark.parametrize("start", [8, 2])
def test_toy_converges_at_any_conditioning_and_finds_the_true_rank(decay, start):
    """20x20x20, true rank 4, singular values of the start decaying by `decay` per index."""
    p, goal = toy(decay, start)
    losses = descend(RiemannianSGD([p], lr=0.5, rank_adaptation=RankAdaptation(1e-3)), p, goal, 20)
    assert min(losses) < 1e-8
    assert p.manifold.rank == (4, 4, 4)


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_batched_execution_equals_the_loop(manifold):
    loop, batch = ([parameter(manifold, seed) for seed in range(3)] for _ in range(2))
    goals = [target(manifold, 10 + seed) for seed in range(3)]
    slow = RiemannianSGD(loop, lr=0.2, momentum=0.9, foreach=False)
    fast = RiemannianSGD(batch, lr=0.2, momentum=0.9)
    for step in range(4):
        for optimizer, parameters in ((slow, loop), (fast, batch)):
            optimizer.zero_grad()
            # The second parameter has no gradient at first, so its state begins later.
            live = [k for k in range(3) if step > 0 or k != 1]
            sum(distance(parameters[k], goals[k]) for k in live).backward()
            optimizer.step()
    for a, b in zip(loop, batch, strict=True):
        torch.testing.assert_close(a.detach(), b.detach())
        torch.testing.assert_close(slow.state[a]["momentum_buffer"], fast.state[b]["momentum_buffer"])


def test_trajectory_does_not_depend_on_the_gauge():
    manifold, goal = MANIFOLDS[0], target(MANIFOLDS[0])
    p = parameter(manifold)
    core, *factors = manifold.unpack_tensor(p.detach())
    turned = []
    for axis, factor in enumerate(factors):
        rotation = torch.linalg.qr(
            torch.randn(*[factor.shape[1]] * 2, dtype=p.dtype, generator=generator(axis))
        )[0]
        turned.append(factor @ rotation)
        core = torch.tensordot(core, rotation, dims=([axis], [0])).movedim(-1, axis)
    q = geoopt.ManifoldParameter(manifold.pack_point(core, *turned), manifold=manifold)
    torch.testing.assert_close(dense(p), dense(q))
    for other in (p, q):
        policy = RankAdaptation(tol=0.1, every=3)
        descend(RiemannianSGD([other], lr=0.3, momentum=0.7, rank_adaptation=policy), other, goal, 6)
    assert p.manifold == q.manifold
    torch.testing.assert_close(dense(p), dense(q))


def test_float32_steps_do_not_drift():
    manifold = TuckerManifold((8, 7, 6), (3, 3, 3))
    p, goal = parameter(manifold, dtype=torch.float32), target(manifold, dtype=torch.float32)
    optimizer = RiemannianSGD([p], lr=0.1, momentum=0.9)
    noise = generator(3)
    for _ in range(1000):
        optimizer.zero_grad()
        distance(p, goal + torch.randn(goal.shape, generator=noise)).backward()
        optimizer.step()
    ok, reason = manifold.check_point_on_manifold(p.detach(), explain=True, atol=1e-5, rtol=0)
    assert ok, reason


def test_batch_of_points_in_one_parameter():
    manifold, goal = MANIFOLDS[0], target(MANIFOLDS[0])
    singles = [parameter(manifold, seed) for seed in range(2)]
    joint = geoopt.ManifoldParameter(torch.stack([p.detach() for p in singles]), manifold=manifold)
    for p in [*singles, joint]:
        descend(RiemannianSGD([p], lr=0.2, momentum=0.9), p, goal, 3)
    torch.testing.assert_close(joint.detach(), torch.stack([p.detach() for p in singles]))
    descend(RiemannianSGD([joint], lr=0.2, momentum=0.9, rank_adaptation=RankAdaptation(0.3)), joint, goal, 3)
    assert joint.shape == (2, joint.manifold.size)


def test_tensor_learning_rate():
    manifold, goal = MANIFOLDS[0], target(MANIFOLDS[0])
    p, q = parameter(manifold), parameter(manifold)
    descend(RiemannianSGD([p], lr=torch.tensor(0.2)), p, goal, 2)
    descend(RiemannianSGD([q], lr=0.2), q, goal, 2)
    torch.testing.assert_close(p.detach(), q.detach())


@pytest.mark.parametrize("cls", [RiemannianSGD, RiemannianAdam, TangentMuon])
@pytest.mark.parametrize("shape", [(1,), (1, 1)])
def test_a_learning_rate_of_one_element_is_a_number(cls, shape):
    """Its shape does not broadcast, and its type does not decide on that of the step."""
    found, goal = [], target(MANIFOLDS[0], dtype=torch.float32)
    for lr in (torch.full(shape, 0.2, dtype=torch.float64), 0.2):
        p = parameter(MANIFOLDS[0], dtype=torch.float32)
        descend(cls([p], lr=lr, rank_adaptation=RankAdaptation(0.01, every=2)), p, goal, 3)
        found.append(p.detach())
    torch.testing.assert_close(*found)


def test_deepcopy_of_model_and_optimizer_goes_on_alike():
    manifold, goal = MANIFOLDS[0], target(MANIFOLDS[0])
    p = parameter(manifold)
    optimizer = RiemannianSGD([p], lr=0.2, momentum=0.9, rank_adaptation=RankAdaptation(0.1))
    descend(optimizer, p, goal, 2)
    twin = copy.deepcopy({"p": p, "optimizer": optimizer})
    descend(optimizer, p, goal, 3)
    descend(twin["optimizer"], twin["p"], goal, 3)
    assert twin["p"].manifold == p.manifold
    assert torch.equal(twin["p"], p)


def test_momentum_that_is_switched_off_leaves_nothing_behind():
    """What would stay at the old point is neither in the way of ranks nor taken up again."""
    p, goal = parameter(MANIFOLDS[0]), target(MANIFOLDS[0])
    optimizer = RiemannianSGD([p], lr=0.3, momentum=0.9, rank_adaptation=RankAdaptation(0.01, every=3))
    descend(optimizer, p, goal, 2)
    ranks = p.manifold.rank
    optimizer.param_groups[0]["momentum"] = 0.0
    descend(optimizer, p, goal, 2)
    assert p.manifold.rank != ranks
    assert "momentum_buffer" not in optimizer.state[p]
    optimizer.param_groups[0]["momentum"] = 0.9
    descend(optimizer, p, goal, 1)
    assert optimizer.state[p]["momentum_buffer"].shape == p.shape
