"""What the theory is tested on and drawn from."""

import math

import geoopt
import torch

from tenfold.manifolds import FixedRankManifold, LowRankManifold, TuckerManifold
from tenfold.optim import RankAdaptation, RiemannianSGD
from tests.optim.problems import (
    Tensor,
    dense,
    descend,
    distance,
    generator,
    integrate,
    parameter,
    run,
    target,
    toy,
)

TENSORS = TuckerManifold((8, 7, 6), 3)


def flow_problem(smallest: float) -> tuple[LowRankManifold, torch.Tensor, torch.Tensor]:
    """A start and a goal of rank 8 whose gradient flow W(t) = A + exp(-t) (W0 - A) has at most rank 16.

    Row spaces are shared; singular values of both decay to `smallest`.
    """
    manifold = FixedRankManifold((30, 25), 8)
    point = manifold.random(dtype=torch.float64, generator=generator(0))
    left, right = manifold.unpack_tensor(point)[1:]
    turn = torch.linalg.qr(torch.randn(30, 30, dtype=torch.float64, generator=generator(1)))[0]
    values = torch.logspace(0, math.log10(smallest), 8, dtype=torch.float64)
    start = manifold.pack_point(values.diag(), left, right)
    # The goal lies in a slightly rotated column space, so that the bases have to move.
    angle = 0.3
    tilted = math.cos(angle) * left + math.sin(angle) * _outside(left, turn)
    goal = tilted @ values.diag() @ right.T
    return manifold, start, goal


def _outside(left: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Orthonormal columns orthogonal to `left`."""
    free = turn - left @ (left.T @ turn)
    return torch.linalg.svd(free)[0][:, : left.shape[1]]


def flow_error(smallest: float, steps: int) -> float:
    """Distance between the Riemannian steps at time 1 and the full gradient flow."""
    manifold, start, goal = flow_problem(smallest)
    flow = goal + math.exp(-1.0) * (manifold.to_dense(start) - goal)
    p = geoopt.ManifoldParameter(start.clone(), manifold=manifold.lifted())
    optimizer = RiemannianSGD([p], lr=1.0 / steps, rank_adaptation=RankAdaptation(1e-14, max_rank=16))
    descend(optimizer, p, goal, steps)
    return (dense(p) - flow).norm().item()


def stochastic_gradient_norms(steps: int) -> list[float]:
    """Norms of the Riemannian gradient along Robbins-Monro steps 1 / (k + 2) with noisy gradients."""
    goal = TENSORS.to_dense(TENSORS.random(dtype=torch.float64, generator=generator(0)))
    p = parameter(TENSORS, seed=1)
    optimizer = RiemannianSGD([p], lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1.0 / (k + 2.0))
    noise, sizes = generator(2), []
    for _ in range(steps):
        optimizer.zero_grad()
        sample = goal + torch.randn(goal.shape, dtype=torch.float64, generator=noise)
        distance(p, sample).backward()
        optimizer.step()
        schedule.step()
        gradient = TENSORS.project_dense(p.detach(), dense(p) - goal)
        sizes.append(gradient.norm().item())
    return sizes


def descent(lr: float, steps: int) -> tuple[list[float], list[float]]:
    """Decrease of a weighted quadratic in every untruncated step, and what the descent lemma guarantees.

    The weights of the entries lie in [0, 1], so the smoothness constant is at most 1.
    """
    p, goal = parameter(TENSORS), target(TENSORS)
    weights = torch.rand(goal.shape, dtype=torch.float64, generator=generator(5))
    optimizer = RiemannianSGD([p], lr=lr, rank_adaptation=RankAdaptation(0.0))
    decreases, guaranteed = [], []
    for _ in range(steps):
        losses = []
        for _ in "ab":
            optimizer.zero_grad()
            loss = 0.5 * (weights * (p.manifold.to_dense(p) - goal).square()).sum()
            losses.append(loss.item())
            if len(losses) == 1:
                loss.backward()
                gradient = weights * (dense(p) - goal)
                size = p.manifold.project_dense(p.detach(), gradient).norm().item()
                optimizer.step()
        decreases.append(losses[0] - losses[1])
        guaranteed.append(lr * (1 - lr / 2) * size**2)
    return decreases, guaranteed


def toy_losses(decay: float, steps: int) -> dict[str, list[float]]:
    """The ill-conditioned toy under four methods; the factors at the best of some rates."""
    found = {}
    p, goal = toy(decay)
    found["RiemannianSGD"] = descend(
        RiemannianSGD([p], lr=0.5, rank_adaptation=RankAdaptation(1e-3)), p, goal, steps
    )
    p, goal = toy(decay)
    found["RiemannianSGD, damped"] = descend(RiemannianSGD([p], lr=0.5, damping=0.1), p, goal, steps)
    p, goal = toy(decay)
    net = Tensor(p.manifold, p.detach())
    found["TDLRT"] = run(
        integrate("fused", net, lr=0.5, rank_adaptation=RankAdaptation(1e-3)), net, goal, steps
    )
    rates = (4e-3, 6e-3, 8e-3, 1e-2, 1.2e-2, 1.4e-2)
    runs = [_factor_descent(decay, rate, steps) for rate in rates]
    found["gradient descent on the factors"] = min(runs, key=lambda losses: losses[-1])
    return found


def _factor_descent(decay: float, rate: float, steps: int) -> list[float]:
    p, goal = toy(decay)
    x = p.detach().clone().requires_grad_()
    optimizer, losses = torch.optim.SGD([x], lr=rate), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = 0.5 * (p.manifold.to_dense(x) - goal).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item() if loss.isfinite() else math.inf)
    return losses


def gauge_gap(steps: int) -> tuple[list[float], list[float]]:
    """Distance between trajectories from two scalings and rotations of the factors of one tensor.

    First for Riemannian steps (two rotations), then for gradient descent on the factors (a rotation and a
    rescaling of the basis against the core, which no longer is a point of the manifold).
    """
    goal = target(TENSORS)
    core, first, *rest = TENSORS.unpack_tensor(parameter(TENSORS).detach())
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator(4)))[0]
    pairs = []
    for scale in (1.0, 3.0):
        turned = TENSORS.pack_point(
            torch.einsum("abc,ad->dbc", core, turn) / scale, scale * first @ turn, *rest
        )
        pairs.append([TENSORS.pack_point(core, first, *rest), turned])
    riemannian = [geoopt.ManifoldParameter(x.clone(), manifold=TENSORS) for x in pairs[0]]
    plain = [x.clone().requires_grad_() for x in pairs[1]]
    gaps: tuple[list[float], list[float]] = ([], [])
    for gap, items, make in zip(
        gaps,
        (riemannian, plain),
        (lambda p: RiemannianSGD([p], lr=0.2), lambda p: torch.optim.SGD([p], lr=0.005)),
        strict=True,
    ):
        optimizers = [make(p) for p in items]
        for _ in range(steps):
            for p, optimizer in zip(items, optimizers, strict=True):
                optimizer.zero_grad()
                (0.5 * (TENSORS.to_dense(p) - goal).square().sum()).backward()
                optimizer.step()
            a, b = (TENSORS.to_dense(p.detach()) for p in items)
            gap.append(((a - b).norm() / a.norm()).item())
    return gaps


def integrator_gaps(steps: int) -> dict[str, list[float]]:
    """Relative distance of trajectories that the theory says are equal."""
    goal = target(TENSORS)
    policy = RankAdaptation(0.05, max_rank=4)
    nets = {kind: Tensor(TENSORS) for kind in ("two-pass", "fused", "parallel")}
    optimizers = {kind: integrate(kind, net, lr=0.2, rank_adaptation=policy) for kind, net in nets.items()}
    p = parameter(TENSORS)
    riemannian = RiemannianSGD([p], lr=0.2, rank_adaptation=policy)
    gaps: dict[str, list[float]] = {"two-pass and fused": [], "parallel and RiemannianSGD": []}
    for _ in range(steps):
        for kind, net in nets.items():
            run(optimizers[kind], net, goal, 1)
        descend(riemannian, p, goal, 1)
        a, b, c = (dense(net.weight) for net in nets.values())
        gaps["two-pass and fused"].append(((a - b).norm() / a.norm()).item())
        gaps["parallel and RiemannianSGD"].append(((c - dense(p)).norm() / c.norm()).item())
    return gaps


def projection_gap(manifold: LowRankManifold, lr: float) -> float:
    """Relative distance of an augmented step from W - lr P_U^ G, with U^_i = orth[U_i | g_i]."""
    net, goal = Tensor(manifold), target(manifold)
    w = dense(net.weight)
    projected = w - goal
    distance(net.weight, goal).backward()
    factors = manifold.unpack_tensor(net.weight.detach())[1:]
    gradients = manifold.unpack_tensor(net.weight.grad)[1:]
    for mode, u, g in zip(getattr(manifold, "modes", (0, 1)), factors, gradients, strict=True):
        basis = torch.linalg.qr(torch.cat([u, g], dim=1))[0]
        projected = torch.tensordot(projected, basis @ basis.T, dims=([mode], [0])).movedim(-1, mode)
    net.zero_grad()
    run(integrate("fused", net, lr=lr), net, goal, 1)
    expected = w - lr * projected
    return ((dense(net.weight) - expected).norm() / expected.norm()).item()
