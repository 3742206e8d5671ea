"""The theory of geometry-aware training as executable checks.

Each test states its formula. The statements are those of Zangrando et al. (arXiv 2305.19059) for TDLRT and of
Kieri, Lubich and Walach for the robustness of projector-splitting steps; constants are not available,
so rates and their independence of the smallest singular value are tested.
"""

import itertools
import math
from pathlib import Path

import geoopt
import pytest
import torch

from tenfold.manifolds import TuckerManifold
from tests.optim.problems import distance, generator
from tests.theory.figures import FIGURES, draw
from tests.theory.figures import descent as descent_figure
from tests.theory.figures import gauge as gauge_figure
from tests.theory.figures import integrators as integrators_figure
from tests.theory.figures import projection as projection_figure
from tests.theory.problems import (
    TENSORS,
    descent,
    flow_error,
    gauge_gap,
    integrator_gaps,
    projection_gap,
    stochastic_gradient_norms,
    toy_losses,
)

pytestmark = pytest.mark.filterwarnings("ignore::tenfold.optim.IllConditionedWarning")


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
    sizes = stochastic_gradient_norms(600)
    tail = sum(sizes[-50:]) / 50
    assert tail < 0.25 * (sum(sizes[10:60]) / 50)
    # The mean squared error of such averages falls like 1 / k times the dimension.
    assert tail < 3 * math.sqrt(TENSORS.dim / 600)


@pytest.mark.parametrize("lr", [0.2, 1.0, 1.8])
def test_loss_falls_by_the_descent_lemma(lr):
    """L(W+) <= L(W) - lr (1 - lr l / 2) |P(W) G|^2 with l = 1."""
    for decrease, guaranteed in zip(*descent(lr, 5), strict=True):
        assert decrease >= guaranteed - 1e-10


@pytest.mark.parametrize("decay", [1.0, 10.0, 100.0])
def test_geometry_needs_a_tenth_of_the_iterations_of_the_factors_at_any_conditioning(decay):
    """Iterations to a loss of 1e-8 are at most 21, whatever the singular values of the start."""
    losses = toy_losses(decay, 200)
    for name in ("RiemannianSGD", "RiemannianSGD, damped", "TDLRT"):
        assert min(losses[name][:22]) < 1e-8, name
    # 200 steps at the best of six rates do not bring the factors there.
    assert losses["gradient descent on the factors"][-1] > 1e-8


def test_trajectories_do_not_depend_on_the_gauge():
    """W_k is a function of W_0 alone; gradient descent on the factors is not."""
    riemannian, factors = gauge_gap(10)
    assert max(riemannian) < 1e-12
    assert factors[-1] > 1e-2


def test_integrators_that_the_theory_equates_take_the_same_steps():
    """Two-pass = fused; parallel = Riemannian step with adaptive retraction."""
    for name, gap in integrator_gaps(8).items():
        assert max(gap) < 1e-12, name


@pytest.mark.parametrize("lr", [1e-3, 1.0])
def test_augmented_step_is_the_projected_gradient_step(lr):
    """W+ = W - lr P_U^ G with P_U^ X = X x_i U^_i U^_i^T."""
    assert projection_gap(TENSORS, lr) < 1e-13


def test_every_figure_is_drawn(tmp_path):
    draw(tmp_path, [descent_figure, gauge_figure, integrators_figure, projection_figure])
    names = {"descent.png", "gauge.png", "integrators.png", "projection.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    page = Path(__file__).parents[2] / "docs" / "theory.md"
    for figure in FIGURES:
        assert f"theory/{figure.__name__}.png" in page.read_text()
        assert (page.parent / "theory" / f"{figure.__name__}.png").stat().st_size > 5000
