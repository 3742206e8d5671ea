"""G: the Riemannian gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import geoopt
import torch

from tenfold.linalg import rounding_floor
from tenfold.testing.check import check
from tenfold.testing.curves import along, has_order, measure
from tenfold.testing.memory import low_rank_operations, peak
from tenfold.testing.outcome import Curve, Measured, NotApplicable
from tenfold.testing.points import Spectrum
from tenfold.testing.properties.points import length
from tenfold.testing.properties.retraction import smooth
from tenfold.testing.properties.tangents import is_tangent
from tenfold.testing.sample import Sample, holds
from tenfold.testing.tolerances import tolerance

__all__ = ["gradient_curve"]

Loss = Callable[[torch.Tensor], torch.Tensor]


def smooth_loss(s: Sample) -> Loss:
    """A nonlinear function of rows of the surrounding space, one number per row."""
    slopes, phases = s.normal(s.subject.length), s.normal(s.subject.length)
    weights = s.vector()
    return lambda rows: (weights.to(rows) * torch.cos(slopes.to(rows) * rows + phases.to(rows))).sum(-1)


def slope_of(loss: Loss, rows: torch.Tensor) -> torch.Tensor:
    """Gradient of a loss in the surrounding space."""
    rows = rows.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(rows).sum(), rows)[0]


def riemannian(s: Sample, x: torch.Tensor, loss: Loss) -> tuple[torch.Tensor, torch.Tensor]:
    """What autograd gives for the stored point, and what ``egrad2rgrad`` makes of it."""
    x = x.detach().clone().requires_grad_()
    egrad = torch.autograd.grad(loss(s.subject.dense(x)).sum(), x)[0]
    return egrad, s.manifold.egrad2rgrad(x.detach(), egrad.clone())


@check("G1", "egrad2rgrad turns the autograd gradient into the Riemannian gradient, with a frame or without")
def dense_gradient(s: Sample) -> Iterator[Measured]:
    for sample in (s, s.but(spectrum=Spectrum.EQUAL)) if s.subject.low_rank is not None else (s,):
        yield from _dense_gradient(sample)


def _dense_gradient(s: Sample) -> Iterator[Measured]:
    loss = smooth_loss(s)
    egrad, rgrad = riemannian(s, s.x, loss)
    dense = slope_of(loss, s.subject.dense(s.x))
    size = max(float(length(dense).max()), 1e-300)
    if s.subject.low_rank is not None:
        got = s.subject.tangent(s.x, rgrad)
        yield s.equal("P(dense gradient)", got, s.space.project(dense), scale=size, against=s.space)
        frame = s.manifold.frame(s.x)
        if frame is not None:
            framed = s.manifold.egrad2rgrad(s.x, egrad, frame=frame)
            yield s.same_points("egrad2rgrad(x, u, frame)", framed, rgrad, condition=s.space.condition)
        return
    shape = (s.space.dim, *s.batch, *s.subject.point_shape)
    basis = s.space.basis.movedim(-1, 0).reshape(shape).to(s.dtype)
    products = s.inner(s.x, rgrad.expand(shape), basis)
    scale = max(size, float(products.abs().max()))
    want = (s.subject.flat(basis) * s.subject.flat(egrad)).sum(-1)
    yield s.equal(
        "<rgrad, v> = df(v)", products.movedim(0, -1), want.movedim(0, -1), scale=scale, against=s.space
    )


def gradient_curve(
    manifold: geoopt.Manifold, f: Loss, x: torch.Tensor, u: torch.Tensor, rgrad: torch.Tensor, reach: float
) -> Curve:
    """``|f(R(t u)) - f(x) - t <rgrad, u>|`` over t.

    ``f`` maps stored points ``(*batch, *point_shape)`` to one number each, for any batch.
    """
    start = f(x)
    rate = manifold.inner(x, rgrad, u, keepdim=True).reshape(start.shape)

    def errors(t: torch.Tensor) -> torch.Tensor:
        return (f(manifold.retr(*along(t, x, u))) - start - along(t, start, rate)[1]).abs()

    size = max(float(start.abs().max()), float(rate.abs().max()) * reach, 1e-300)
    floor = tolerance(torch.float64, x.shape[-1]) * size
    return measure("|f(R(t u)) - f(x) - t <grad f, u>|", 2, reach, errors, floor)


@check("G2", "the gradient predicts f along the retraction: the error has slope 2")
def prediction(s: Sample) -> Iterator[Measured]:
    s = smooth(s)
    loss = smooth_loss(s)
    _, rgrad = riemannian(s, s.x, loss)
    curve = gradient_curve(s.manifold, lambda x: loss(s.subject.dense(x)), s.x, s.tangent(), rgrad, s.reach)
    yield has_order(curve)


@check("G3", "the gradient is tangent")
def tangent(s: Sample) -> Iterator[Measured]:
    _, rgrad = riemannian(s, s.x, smooth_loss(s))
    size = length(s.subject.flat(rgrad))
    size = torch.where(size > 0, size, torch.ones_like(size))
    unit = rgrad / size.reshape(*size.shape, *(1,) * len(s.subject.point_shape))
    yield from is_tangent(s, "grad f is tangent", s.x, unit)
    outside = s.space.normal(s.subject.tangent(s.x, unit))
    yield s.zero("its part outside of the tangent space", outside, against=s.space)


@check("G4", "the gradient does not depend on the gauge")
def gauge_equivariant(s: Sample) -> Iterator[Measured]:
    y = s.subject.other_gauge(s.x, s.generator)
    loss = smooth_loss(s)
    (_, here), (_, there) = riemannian(s, s.x, loss), riemannian(s, y, loss)
    scale = max(float(length(slope_of(loss, s.subject.dense(s.x))).max()), 1e-300)
    got, want = s.subject.tangent(y, there), s.subject.tangent(s.x, here)
    yield s.equal("grad f as a tensor", got, want, scale=scale, condition=s.space.condition)


def _product(direction: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return (rows * direction.to(rows)).sum(-1)


@check("G5", "the gradient loses no more digits than the condition number has")
def conditioning(s: Sample) -> Iterator[Measured]:
    s.low_rank("points of this manifold have no condition number to prescribe")
    measured = 0
    for condition in (1e1, 1e2, 1e3, 1e4):
        hard = s.but(dtype=torch.float32, condition=condition, spectrum=Spectrum.DECAY, batch=())
        bound = rounding_floor(torch.float32, max(s.manifold.shape)) * hard.space.condition
        if bound > 0.5:
            continue
        measured += 1
        direction = hard.vector()
        _, rgrad = riemannian(hard, hard.x, partial(_product, direction))
        got, want = hard.subject.tangent(hard.x, rgrad).double(), hard.space.project(direction)
        error = float((length(got - want) / length(want)).max())
        yield Measured(f"relative error in float32 at condition {hard.space.condition:.1g}", error, bound)
    if not measured:
        raise NotApplicable("the points that were drawn are too ill-conditioned for float32")


@check("G6", "no operation allocates as many numbers as the dense tensor has")
def memory(s: Sample) -> Iterator[Measured]:
    s.low_rank("points of this manifold are dense")
    manifold = s.manifold
    # Twice the rank along every axis is what truncation works on; beyond that nothing may grow.
    needed = 4 * 2 ** len(manifold.shape) * manifold.size
    if manifold.dense_size <= needed:
        raise NotApplicable(
            f"the dense tensor has {manifold.dense_size} numbers, too few to tell from the {needed} that "
            "truncation may need: check a larger shape"
        )
    x = s.but(batch=(), spectrum=Spectrum.DECAY).x
    for name, action in low_rank_operations(manifold, x).items():
        largest = peak(action)
        yield Measured(f"largest array of {name}", float(largest), float(manifold.dense_size - 1))


@check("G7", "to_dense is differentiable, and autograd has it right")
def differentiable(s: Sample) -> Iterator[Measured]:
    subject = s.low_rank("the embedding is the identity")
    if getattr(s.manifold, "is_lifted", False):
        raise NotApplicable("autograd returns isometric coordinates here, not derivatives, by design")
    s = s.but(dtype=torch.float64, batch=())
    s.space  # noqa: B018  refuses manifolds that are too large for a dense Jacobian
    x = s.x.requires_grad_()
    right = torch.autograd.gradcheck(subject.low_rank.to_dense, (x,), raise_exception=False, fast_mode=True)
    yield holds("gradcheck of to_dense", bool(right))


@check("G8", "the gradient is zero at a critical point")
def critical(s: Sample) -> Iterator[Measured]:
    z = s.vector()
    normal = s.space.normal(z).to(s.dtype)
    _, rgrad = riemannian(s, s.x, lambda rows: (normal * rows).sum(-1))
    condition = s.space.condition
    flat = s.subject.flat(rgrad)
    yield s.zero("the gradient of a normal direction", flat, condition=condition, against=s.space)
    if s.subject.low_rank is not None:
        target = s.subject.dense(s.x).detach()
        _, rgrad = riemannian(s, s.x, lambda rows: 0.5 * (rows - target).square().sum(-1))
        yield s.zero("the gradient of the distance to itself", s.subject.flat(rgrad), condition=condition)
