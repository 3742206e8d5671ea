"""R: the retraction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from tenfold.manifolds import LowRankManifold, TreeManifold
from tenfold.testing.check import check
from tenfold.testing.curves import along, has_order, measure
from tenfold.testing.outcome import Curve, Measured, NotApplicable
from tenfold.testing.points import Spectrum
from tenfold.testing.properties.points import length, on_manifold
from tenfold.testing.properties.spectra import same_spectra
from tenfold.testing.sample import Sample, finite, holds
from tenfold.testing.tolerances import tolerance

__all__ = ["smooth"]

_SMOOTH_CONDITION = 10.0


def smooth(s: Sample) -> Sample:
    """The same example where slopes can be measured: in float64, away from lower ranks."""
    return s.but(dtype=torch.float64, condition=min(s.condition, _SMOOTH_CONDITION))


def _floor(s: Sample, x: torch.Tensor) -> float:
    return tolerance(torch.float64, s.subject.length) * max(float(length(s.subject.dense(x)).max()), 1.0)


def _first_order(s: Sample, *, project: bool) -> Curve:
    """``R(t u) - x - t u`` over t, or its projection on the tangent space."""
    s = smooth(s)
    u = s.tangent()
    x, move = s.subject.dense(s.x), s.subject.tangent(s.x, u)

    def errors(t: torch.Tensor) -> torch.Tensor:
        gap = s.subject.dense(s.manifold.retr(*along(t, s.x, u))) - x - along(t, x, move)[1]
        return length(s.space.project(gap) if project else gap)

    label = "|P(R(t u) - x - t u)|" if project else "|R(t u) - x - t u|"
    return measure(label, 3 if project else 2, s.reach, errors, _floor(s, s.x))


@check("R1", "the retraction of zero is the point, in coordinates too")
def zero(s: Sample) -> Iterator[Measured]:
    y = s.manifold.retr(s.x, torch.zeros_like(s.x))
    yield s.equal("R(0) as a tensor", s.subject.dense(y), s.subject.dense(s.x))
    # The directions of small singular values are known up to the condition number.
    yield s.same_points("R(0) in coordinates", y, s.x, condition=s.space.condition)


@check("R2", "the retraction lands on the manifold and keeps the rank")
def lands(s: Sample) -> Iterator[Measured]:
    for step in (0.3 * s.reach, 1.0):
        y = s.manifold.retr(s.x, step * s.tangent())
        yield holds("the shape and the type stay", y.shape == s.x.shape and y.dtype == s.x.dtype)
        yield finite("R(u) is finite", y)
        yield on_manifold(s, "R(u) lies on the manifold", y)
    s = s.but(dtype=torch.float64)
    space = s.space_at(s.manifold.retr(s.x, 0.3 * s.reach * s.tangent()))
    yield holds(
        f"{space.smallest_dim} tangent dimensions at R(u), {s.space.dim} at x",
        space.smallest_dim == space.dim == s.space.dim,
    )


@check("R3", "the retraction is of first order: |R(t u) - x - t u| has slope 2")
def first_order(s: Sample) -> Iterator[Measured]:
    yield has_order(_first_order(s, project=False))


@check("R4", "the retraction is of second order where that is claimed: |P(R(t u) - x - t u)| has slope 3")
def second_order(s: Sample) -> Iterator[Measured]:
    s.needs_frobenius()
    curve = _first_order(s, project=True)
    if s.subject.order != 2:
        raise NotApplicable(f"no second order is claimed; the slope is {curve.slope:.2f}")
    yield has_order(curve)


@check("R5", "two retractions agree to their order")
def agreement(s: Sample) -> Iterator[Measured]:
    s = smooth(s)
    manifold, u = s.manifold, s.tangent()
    low_rank = s.subject.low_rank
    if low_rank is None and type(manifold).retr is type(manifold).expmap:
        raise NotApplicable("retr and expmap are the same map")

    def errors(t: torch.Tensor) -> torch.Tensor:
        x, move = along(t, s.x, u)
        if low_rank is not None:
            other = low_rank.truncation(x, move).to(low_rank.rank)[1]
        else:
            other = manifold.expmap(x, move)
        return length(s.subject.dense(manifold.retr(x, move)) - s.subject.dense(other))

    def gap(t: torch.Tensor) -> torch.Tensor:
        x, move = along(t, s.x, u)
        return length(s.subject.dense(manifold.retr(x, move)) - s.subject.dense(manifold.expmap(x, move)))

    second = s.subject.order == 2 and low_rank is not None
    label = "|R(t u) - HOSVD(x + t u)|" if low_rank is not None else "|R(t u) - Exp(t u)|"
    yield has_order(measure(label, 3 if second else 2, s.reach, errors, _floor(s, s.x)))
    if low_rank is not None and type(manifold).expmap is not LowRankManifold.expmap:
        yield has_order(measure("|R(t u) - Exp(t u)|", 2, s.reach, gap, _floor(s, s.x)))


@check("R6", "the truncation of x + u is that of the dense tensor, and so are singular values")
def truncation(s: Sample) -> Iterator[Measured]:
    subject = s.low_rank("points of this manifold have no rank to truncate")
    m, u = s.manifold, 0.3 * s.reach * s.tangent()
    dense = subject.dense(s.x)
    moved = dense + subject.tangent(s.x, u)
    sum = m.truncation(s.x, u)
    structured = subject.dense(sum.to(m.rank)[1])
    through_dense = subject.dense(m.from_dense(subject.tensors(moved)))
    yield s.equal("truncation(x, u) = from_dense(x + u)", structured, through_dense, against=s.space)
    yield from same_spectra(s, "truncation(x, u)", sum.singular_values, moved)
    yield from same_spectra(s, "truncation(x)", m.truncation(s.x).singular_values, dense)
    yield from same_spectra(s, "singular_values(x)", m.singular_values(s.x), dense)
    frame = m.frame(s.x)
    if frame is not None:
        framed = m.truncation(s.x, u, frame=frame)
        yield s.equal("truncation(x, u, frame)", subject.dense(framed.to(m.rank)[1]), structured)
        yield from same_spectra(s, "truncation(x, u, frame)", framed.singular_values, moved)


@check("R7", "the retraction and the gradient are finite for huge, tiny, singular and ill-conditioned input")
def extremes(s: Sample) -> Iterator[Measured]:
    low_rank = s.subject.low_rank
    if low_rank is None:
        for step in (0.0, 1e-20, 1e2):
            y = s.manifold.retr(s.x, step * s.tangent())
            yield finite(f"R({step:g} u)", y)
            yield on_manifold(s, f"R({step:g} u) lies on the manifold", y, tight=False)
        return
    hard = s.but(condition=1 / torch.finfo(s.dtype).eps, spectrum=Spectrum.DECAY)
    for kind, sizes in (
        (s.but(spectrum=Spectrum.EQUAL), (1.0, 1e-20)),
        (s.but(spectrum=Spectrum.ZERO), (1.0, 1e20, 0.0)),
        (hard, (1.0, 1e20, 1e-20)),
    ):
        yield from _extreme(kind, sizes)


_EXTREME_STEPS = (1.0, 1e20, 1e-20, 0.0)


def _extreme(s: Sample, sizes: tuple[float, ...]) -> Iterator[Measured]:
    """Points of all sizes as one batch, and from each of them steps of all lengths as another."""
    s = s.but(batch=(len(sizes), *s.batch))
    x = scaled(s, torch.tensor(sizes, dtype=s.dtype))
    u, v = s.tangent(x), s.tangent(x)
    where = f"a {s.spectrum} spectrum of sizes {', '.join(f'{size:g}' for size in sizes)}"
    grads = torch.tensor(sizes).to(x).reshape(-1, *(1,) * (x.ndim - 1)) * s.normal(*s.subject.point_shape)
    yield from _each(sizes, "gradient at size", finite, s.manifold.egrad2rgrad(x, grads))
    wide, steps = along(torch.tensor(_EXTREME_STEPS, dtype=torch.float64), x, u)
    y, moved = s.manifold.retr_transp(wide, steps, v.expand_as(steps).contiguous())
    label = f"at {where}, retraction by"
    yield from _each(_EXTREME_STEPS, label, finite, y)
    yield from _each(_EXTREME_STEPS, f"at {where}, transport by", finite, moved)
    yield from _each(_EXTREME_STEPS, label, partial(on_manifold, s), y)
    # A batch shares its ranks, so the zero tensor is truncated by itself, too.
    for part, step, own in ((x, u, sizes), *([(x[-1:], u[-1:], sizes[-1:])] if sizes[-1] == 0.0 else [])):
        smaller, z = s.manifold.truncate(part)
        yield from _each(own, "truncation at size", finite, z)
        yield holds("truncated ranks are at least 1", smaller.size > 0)
        scale = torch.tensor(own).to(x).reshape(-1, *(1,) * (x.ndim - 1))
        truncation = s.manifold.truncation(part, scale * step)
        for tol in (0.0, 0.1):
            z = truncation.by_tolerance(tol)[1]
            yield from _each(own, f"adaptive retraction, tol={tol:g}, at size", finite, z)


def _each(
    numbers: tuple[float, ...], what: str, statement: Callable[[str, torch.Tensor], Measured], x: torch.Tensor
) -> Iterator[Measured]:
    """A statement about a batch whose first dimension belongs to ``numbers``; one by one where it fails."""
    together = statement(what, x)
    if together.holds:
        yield together
        return
    for number, part in zip(numbers, x, strict=True):
        yield statement(f"{what} {number:g}", part)


def scaled(s: Sample, sizes: torch.Tensor) -> torch.Tensor:
    """The points multiplied by numbers, one for each along the first dimension of the batch."""
    subject = s.low_rank("this manifold is not known to be a cone")
    if isinstance(s.manifold, TreeManifold):
        factors, root = list(s.manifold.unpack_tensor(s.x)), s.manifold.tree.root
        factors[root] = sizes.reshape(-1, *(1,) * (factors[root].ndim - 1)) * factors[root]
        return s.manifold.pack_point(*factors)
    rows = subject.dense(s.x)
    return s.manifold.from_dense(subject.tensors(sizes.reshape(-1, *(1,) * (rows.ndim - 1)) * rows))


@check("R9", "the loss of orthogonality does not depend on the conditioning")
def orthogonality(s: Sample) -> Iterator[Measured]:
    s.low_rank("points of this manifold have no condition number to prescribe")
    s = s.but(condition=1e12 if s.dtype == torch.float64 else 1e5, spectrum=Spectrum.DECAY)
    for step in (1.0, 1e-6):
        y = s.manifold.retr(s.x, step * s.tangent())
        yield on_manifold(s, f"R({step:g} u) lies on the manifold", y)
        yield s.same_points(f"projx leaves R({step:g} u) alone", s.manifold.projx(y), y)
