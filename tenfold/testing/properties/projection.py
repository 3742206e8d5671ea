"""J: the projection on the tangent space."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tenfold.testing.check import check
from tenfold.testing.outcome import Measured, NotApplicable
from tenfold.testing.properties.points import length
from tenfold.testing.sample import Sample
from tenfold.testing.subject import LowRankSubject

__all__ = ["projected"]

_FULL_RANK_LIMIT = 20_000


def projected(s: Sample, z: torch.Tensor, x: torch.Tensor | None = None) -> torch.Tensor:
    """The manifold's projection of vectors of the surrounding space, as such vectors again."""
    x = s.x if x is None else x
    return s.subject.tangent(x, s.subject.project(x, z))


@check("J1", "the projection is idempotent")
def idempotent(s: Sample) -> Iterator[Measured]:
    rough = s.normal(*s.subject.point_shape)
    once = s.manifold.proju(s.x, rough)
    yield s.same_points("proju(proju(z)) = proju(z)", s.manifold.proju(s.x, once), once)
    if s.subject.low_rank is not None:
        first = projected(s, s.vector())
        yield s.equal("P P z = P z", projected(s, first), first, scale=1.0)


@check("J2", "the projection is self-adjoint")
def self_adjoint(s: Sample) -> Iterator[Measured]:
    s.needs_frobenius()
    z, w = s.vector(), s.vector()
    left, right = (projected(s, z) * w).sum(-1, keepdim=True), (z * projected(s, w)).sum(-1, keepdim=True)
    yield s.equal("<P z, w> = <z, P w>", left, right, scale=1.0)


@check("J3", "the projection is linear")
def linear(s: Sample) -> Iterator[Measured]:
    z, w = s.vector(), s.vector()
    together = projected(s, 2 * z - 0.5 * w)
    yield s.equal("P(2 z - w / 2)", together, 2 * projected(s, z) - 0.5 * projected(s, w), scale=1.0)
    a, b = s.normal(*s.subject.point_shape), s.normal(*s.subject.point_shape)
    both = s.manifold.proju(s.x, 2 * a - 0.5 * b)
    apart = 2 * s.manifold.proju(s.x, a) - 0.5 * s.manifold.proju(s.x, b)
    size = float(length(s.subject.flat(a)).max())
    yield s.equal("proju(2 a - b / 2)", s.subject.flat(both), s.subject.flat(apart), scale=size)


@check("J4", "what the projection takes away is orthogonal to every tangent vector")
def residual(s: Sample) -> Iterator[Measured]:
    s.needs_frobenius()
    z = s.vector()
    products = s.space.coefficients(z - projected(s, z))
    yield s.zero("<z - P z, tangent>", products, against=s.space)


@check("J5", "the projection is the closest tangent vector")
def closest(s: Sample) -> Iterator[Measured]:
    s.needs_frobenius()
    z = s.vector()
    foot = projected(s, z)
    best = length(z - foot)
    for step in (1.0, 0.1, 0.01):
        other = foot + step * s.subject.tangent(s.x, s.tangent())
        yield s.at_most(f"|z - P z| <= |z - (P z + {step:g} u)|", best, length(z - other))


@check("J6", "the projection is that of the dense formula")
def dense_formula(s: Sample) -> Iterator[Measured]:
    s.needs_frobenius()
    z = s.vector()
    yield s.equal("P z", projected(s, z), s.space.project(z), scale=1.0, against=s.space)


@check("J7", "at full rank the projection is the identity")
def full_rank(s: Sample) -> Iterator[Measured]:
    s.low_rank("points of this manifold have no rank")
    manifold = s.manifold
    if manifold.dense_size > _FULL_RANK_LIMIT:
        raise NotApplicable(f"at full rank {manifold.dense_size} numbers are too many: check a smaller shape")
    highest = LowRankSubject(manifold.with_rank(manifold.full_rank))
    full = Sample(highest, s.batch, s.dtype, s.seed, 1.0, s.spectrum)
    z = highest.dense(highest.random(full.generator, s.batch, s.dtype))
    z = z / length(z).unsqueeze(-1)
    yield full.equal("P z = z", projected(full, z), z, scale=1.0)


@check("J8", "the projection does not depend on the gauge")
def gauge_invariant(s: Sample) -> Iterator[Measured]:
    y = s.subject.other_gauge(s.x, s.generator)
    yield s.equal("the tensor", s.subject.dense(y), s.subject.dense(s.x))
    z = s.vector()
    condition = s.space.condition
    yield s.equal("P z", projected(s, z, y), projected(s, z), scale=1.0, condition=condition)
