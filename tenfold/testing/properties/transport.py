"""V: the transport of tangent vectors."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tenfold.testing.check import check
from tenfold.testing.curves import along, has_order, measure
from tenfold.testing.outcome import Measured
from tenfold.testing.properties.points import length
from tenfold.testing.properties.retraction import smooth
from tenfold.testing.properties.tangents import combination, is_tangent
from tenfold.testing.sample import Sample, holds
from tenfold.testing.tolerances import tolerance

__all__: list[str] = []


def _carry(
    s: Sample, u: torch.Tensor, v: torch.Tensor, x: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The end of the step ``u`` from ``x`` (default: the points), and ``v`` carried there."""
    x = s.x if x is None else x
    y = s.manifold.retr(x, u)
    try:
        return y, s.manifold.transp(x, y, v)
    except NotImplementedError:
        return y, s.manifold.transp_follow_retr(x, u, v)


def _step(s: Sample) -> torch.Tensor:
    """A step that neither is negligible nor leaves the neighbourhood of the point."""
    return 0.3 * s.reach * s.tangent()


@check("V1", "a transported vector is tangent at the new point, and transported squares are not negative")
def tangent(s: Sample) -> Iterator[Measured]:
    y, moved = _carry(s, _step(s), s.tangent())
    yield holds("the shape and the type stay", moved.shape == s.x.shape and moved.dtype == s.dtype)
    yield from is_tangent(s, "transp(x, y, v) is tangent", y, moved)
    space = s.space_at(y)
    outside = space.normal(s.subject.tangent(y, moved))
    yield s.zero("its part outside of the tangent space", outside, against=space)
    if s.subject.low_rank is not None:
        squares = s.manifold.transp_squares(s.x, y, s.tangent().square())
        yield s.at_most("transp_squares(x, y, s) >= 0", -squares, torch.zeros_like(squares))


@check("V2", "the transport is linear")
def linear(s: Sample) -> Iterator[Measured]:
    step, (u, v, both) = _step(s), combination(s)
    apart = 2 * _carry(s, step, u)[1] - 0.5 * _carry(s, step, v)[1]
    together = _carry(s, step, both)[1]
    yield s.equal("2 u - v / 2", s.subject.flat(together), s.subject.flat(apart), scale=1.0)


@check("V3", "the transport from a point to itself is the identity, of vectors and of squares")
def identity(s: Sample) -> Iterator[Measured]:
    v = s.tangent()
    try:
        stayed = s.manifold.transp(s.x, s.x, v)
    except NotImplementedError:
        stayed = s.manifold.transp_follow_retr(s.x, torch.zeros_like(v), v)
    condition = s.space.condition
    yield s.equal(
        "transp(x, x, v)", s.subject.flat(stayed), s.subject.flat(v), scale=1.0, condition=condition
    )
    if s.subject.low_rank is not None:
        squares = s.manifold.transp_squares(s.x, s.x, v.square())
        yield s.equal("transp_squares(x, x, s)", squares, v.square(), scale=1.0, condition=condition)


@check("V4", "the transport is the projection of the tangent tensor")
def projection(s: Sample) -> Iterator[Measured]:
    subject = s.low_rank("the transport of this manifold need not be a projection")
    v = s.tangent()
    for u in (_step(s), s.tangent()):
        y, moved = _carry(s, u, v)
        space = s.space_at(y)
        want = space.project(subject.tangent(s.x, v))
        got = subject.tangent(y, moved)
        condition = s.space.condition
        yield s.equal("transp(x, y, v)", got, want, scale=1.0, condition=condition, against=space)


@check("V5", "the transport does not lengthen vectors")
def non_expansive(s: Sample) -> Iterator[Measured]:
    v = s.tangent()
    y, moved = _carry(s, _step(s), v)
    before, after = s.inner(s.x, v).sqrt(), s.inner(y, moved).sqrt()
    yield s.at_most("|transp(x, y, v)| <= |v|", after, before, scale=float(before.max()))


@check("V6", "the transport is continuous: |transp(v) - v| has slope 1")
def continuous(s: Sample) -> Iterator[Measured]:
    s = smooth(s)
    u, v = s.tangent(), s.tangent()
    start = s.subject.tangent(s.x, v)

    def errors(t: torch.Tensor) -> torch.Tensor:
        x, step = along(t, s.x, u)
        y, moved = _carry(s, step, v.expand_as(step).contiguous(), x)
        return length(s.subject.tangent(y, moved) - start)

    floor = tolerance(torch.float64, s.subject.length, s.space.condition)
    yield has_order(measure("|transp(v) - v|", 1, s.reach, errors, floor))


@check("V7", "retr_transp is retr and transp, and a frame that is passed changes nothing")
def both(s: Sample) -> Iterator[Measured]:
    u, v = _step(s), s.tangent()
    y, moved = _carry(s, u, v)
    point, vector = s.manifold.retr_transp(s.x, u, v)
    yield s.same_points("the point", point, y)
    condition = s.space.condition
    got, want = s.subject.flat(vector), s.subject.flat(moved)
    yield s.equal("the vector", got, want, scale=1.0, condition=condition)
    follow = s.subject.flat(s.manifold.transp_follow_retr(s.x, u, v))
    yield s.equal("transp_follow_retr", follow, want, scale=1.0, condition=condition)
    if s.subject.low_rank is not None:
        yield from _framed(s, u, v, y, moved)


def _framed(
    s: Sample, u: torch.Tensor, v: torch.Tensor, y: torch.Tensor, moved: torch.Tensor
) -> Iterator[Measured]:
    """The same results with what the operations at the points share."""
    m, frame, condition = s.manifold, s.manifold.frame(s.x), s.space.condition
    if frame is None:
        return
    yield s.same_points("retr(x, u, frame)", m.retr(s.x, u, frame=frame), y)
    got = m.transp(s.x, y, v, frame=frame)
    yield s.equal("transp(x, y, v, frame)", got, moved, scale=1.0, condition=condition)
    point, vector = m.retr_transp(s.x, u, v, frame=frame)
    yield s.same_points("the point of retr_transp(x, u, v, frame)", point, y)
    yield s.equal("the vector of retr_transp(x, u, v, frame)", vector, moved, scale=1.0, condition=condition)
    got, want = (m.transp_squares(s.x, y, v.square(), **more) for more in ({"frame": frame}, {}))
    yield s.equal("transp_squares(x, y, s, frame)", got, want, scale=1.0, condition=condition)
