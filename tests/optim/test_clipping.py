"""Clipping by the Riemannian norm."""

import geoopt
import pytest
import torch

from tenfold.optim import clip_riemannian_norm_
from tests.optim.problems import MANIFOLDS, dense, distance, generator, parameter, target


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_norm_is_that_of_the_projected_dense_gradient(manifold):
    p, goal = parameter(manifold), target(manifold)
    distance(p, goal).backward()
    x = p.detach()
    tangent = manifold.tangent_to_dense(x, manifold.project_dense(x, dense(p) - goal))
    torch.testing.assert_close(clip_riemannian_norm_(p, 1e9), tangent.norm())
    clip_riemannian_norm_([p], 0.5)
    clipped = manifold.norm(x, manifold.egrad2rgrad(x, p.grad))
    torch.testing.assert_close(clipped, torch.tensor(0.5, dtype=p.dtype), atol=1e-5, rtol=0)


def test_all_kinds_of_parameters_are_clipped_together():
    sphere = geoopt.Sphere()
    on_sphere = geoopt.ManifoldParameter(sphere.projx(torch.ones(3, dtype=torch.float64)), manifold=sphere)
    plain = torch.nn.Parameter(torch.ones(4, dtype=torch.float64))
    low_rank = [parameter(MANIFOLDS[0], seed) for seed in range(2)]
    parameters = [plain, on_sphere, *low_rank, torch.nn.Parameter(torch.ones(2))]
    expected = 0.0
    for p in parameters[:4]:
        p.grad = torch.randn(p.shape, dtype=p.dtype, generator=generator(1))
        rgrad = p.grad if p is plain else p.manifold.egrad2rgrad(p.detach(), p.grad)
        expected += rgrad.square().sum().item()
    before = plain.grad.clone()
    total = clip_riemannian_norm_(parameters, 1.0)
    assert total.item() == pytest.approx(expected**0.5)
    torch.testing.assert_close(plain.grad, before / (total + 1e-6))


def test_short_gradients_and_refusals():
    p = parameter(MANIFOLDS[0])
    assert clip_riemannian_norm_([p], 1.0).item() == 0.0
    p.grad = 1e-6 * torch.ones_like(p)
    before = p.grad.clone()
    clip_riemannian_norm_([p], 1.0)
    assert torch.equal(p.grad, before)
    with pytest.raises(ValueError, match="max_norm"):
        clip_riemannian_norm_([p], 0.0)
    with pytest.raises(ValueError, match="max_norm"):
        clip_riemannian_norm_([p], torch.nan)
    plain = torch.nn.Parameter(torch.ones(2))
    plain.grad = torch.tensor([1.0, float("inf")])
    with pytest.raises(RuntimeError, match="cannot be clipped"):
        clip_riemannian_norm_([plain], 1.0, error_if_nonfinite=True)
    assert plain.grad[0] == 1.0


@pytest.mark.parametrize("scale", [1e-28, 1e25])
def test_lengths_neither_overflow_nor_underflow(scale):
    p = parameter(MANIFOLDS[0], dtype=torch.float32)
    p.grad = torch.ones_like(p)
    length = clip_riemannian_norm_([p], 1e30)
    p.grad = scale * torch.ones_like(p)
    torch.testing.assert_close(clip_riemannian_norm_([p], 1e30), scale * length)
