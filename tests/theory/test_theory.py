"""The theory of geometry-aware training as executable checks.

Each test states its formula. The statements are those of Zangrando et al. (arXiv 2305.19059) for TDLRT and of
Kieri, Lubich and Walach for the robustness of projector-splitting steps; constants are not available,
so rates and their independence of the smallest singular value are tested.
"""

import itertools
import math

import geoopt
import pytest
import torch

from tenfold.manifolds import FixedRankManifold, TuckerManifold
from tenfold.optim import RankAdaptation, RiemannianSGD
from tests.optim.problems import dense, descend, distance, generator

pytestmark = pytest.mark.filterwarnings("ignore::tenfold.optim.IllConditionedWarning")


def flow_problem(smallest: float):
    """A start and a goal of rank 8 whose gradient flow W(t) = A + exp(-t) (W0 - A) has rank 8 throughout.

    Bases are shared, singular values of the start decay to `smallest`.
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


def _outside(left, turn):
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


@pytest.mark.parametrize("smallest", [1e-2, 1e-6, 1e-12])
def test_steps_follow_the_full_gradient_flow_to_first_order(smallest):
    """|W(k lr) - W_k| <= c1 eps + c2 lr with c2 independent of the smallest singular value: slope 1 in lr."""
    errors = [flow_error(smallest, steps) for steps in (20, 40, 80)]
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert slopes == pytest.approx([1.0, 1.0], abs=0.1)


def test_error_of_the_flow_does_not_move_with_the_smallest_singular_value():
    errors = [flow_error(smallest, 40) for smallest in (1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12)]
    assert max(errors) < 2.0 * min(errors)


def test_truncation_adds_at_most_its_tolerance():
    """L(W+) after truncation differs by at most sup |grad L| tau sqrt(d) |W| from before."""
    manifold = TuckerManifold((8, 7, 6), 4)
    x = manifold.random(dtype=torch.float64, generator=generator(0))
    goal = torch.randn(manifold.shape, dtype=torch.float64, generator=generator(1))
    p = geoopt.ManifoldParameter(x, manifold=manifold)
    for tol in (0.01, 0.05, 0.1, 0.3):
        distance(p, goal).backward()
        step = -0.3 * p.manifold.egrad2rgrad(p.detach(), p.grad)
        p.grad = None
        full = p.manifold.retr_adaptive(p.detach(), step, tol=0.0)
        cut = p.manifold.retr_adaptive(p.detach(), step, tol=tol)
        before, after = full[0].to_dense(full[1]), cut[0].to_dense(cut[1])
        steepest = max((before - goal).norm(), (after - goal).norm())
        change = 0.5 * ((after - goal).square().sum() - (before - goal).square().sum()).abs()
        assert change <= steepest * tol * math.sqrt(3) * before.norm() + 1e-12


def test_stochastic_gradients_with_robbins_monro_steps_converge():
    """Step sizes with infinite sum and finite sum of squares drive the Riemannian gradient to zero."""
    manifold = TuckerManifold((8, 7, 6), 3)
    goal = manifold.to_dense(manifold.random(dtype=torch.float64, generator=generator(0)))
    p = geoopt.ManifoldParameter(
        manifold.random(dtype=torch.float64, generator=generator(1)), manifold=manifold
    )
    optimizer = RiemannianSGD([p], lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1.0 / (k + 2.0))
    noise, sizes = generator(2), []
    for _ in range(600):
        optimizer.zero_grad()
        sample = goal + torch.randn(goal.shape, dtype=torch.float64, generator=noise)
        distance(p, sample).backward()
        optimizer.step()
        schedule.step()
        gradient = manifold.project_dense(p.detach(), dense(p) - goal)
        sizes.append(gradient.norm().item())
    tail = sum(sizes[-50:]) / 50
    assert tail < 0.25 * (sum(sizes[10:60]) / 50)
    # The mean squared error of such averages falls like 1 / k times the dimension.
    assert tail < 3 * math.sqrt(manifold.dim / 600)
