"""P: points."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch

from tenfold.linalg import svd
from tenfold.manifolds import LowRankManifold
from tenfold.testing.check import check
from tenfold.testing.outcome import Measured, NotApplicable
from tenfold.testing.points import ranks_of
from tenfold.testing.sample import Sample, finite, holds, refuses
from tenfold.testing.subject import LowRankSubject
from tenfold.testing.tolerances import tolerance

__all__ = ["length", "on_manifold"]


def on_manifold(s: Sample, what: str, x: torch.Tensor, *, tight: bool = True) -> Measured:
    """The manifold's own check accepts points, by default within rounding."""
    atol = s.tolerance() if tight else 1e-5
    ok, reason = s.manifold.check_point_on_manifold(x, explain=True, atol=atol, rtol=atol)
    return holds(what if ok else f"{what}: {reason}", ok)


def noisy(s: Sample) -> torch.Tensor:
    """Near the points, but not points: packed factors without orthonormality, or the surrounding space."""
    return s.x + 0.1 * s.normal(*s.subject.point_shape)


@check("P1", "random and origin lie on the manifold")
def random_and_origin(s: Sample) -> Iterator[Measured]:
    size = (*s.batch, *s.subject.point_shape)
    x = s.subject.random(s.generator, s.batch, s.dtype)
    yield holds(f"random has the shape {size} and {s.dtype}", x.shape == size and x.dtype == s.dtype)
    yield finite("random is finite", x)
    yield on_manifold(s, "random lies on the manifold", x)
    low_rank = s.subject.low_rank
    if low_rank is not None:
        seeds = [torch.Generator().manual_seed(s.seed) for _ in range(2)]
        first, second = (s.subject.random(seed, s.batch, s.dtype) for seed in seeds)
        yield holds("random is reproducible by its generator", torch.equal(first, second))
        dim = s.but(dtype=torch.float64).space_at(x).smallest_dim
        yield holds(f"random has full rank: {dim} tangent dimensions of {low_rank.dim}", dim == low_rank.dim)
    try:
        origin = s.manifold.origin(*size, dtype=s.dtype)
    except NotImplementedError:
        return
    yield on_manifold(s, "origin lies on the manifold", origin)
    again = s.manifold.origin(*size, dtype=s.dtype)
    yield holds("origin is reproducible", origin.shape == size and torch.equal(origin, again))


@check("P2", "projx is idempotent, and the identity on canonical points")
def projection_is_idempotent(s: Sample) -> Iterator[Measured]:
    projx = s.manifold.projx
    rough = noisy(s)
    point = projx(rough)
    yield on_manifold(s, "projx(z) lies on the manifold", point)
    yield s.same_points("projx(projx(z)) = projx(z)", projx(point), point)
    yield s.same_points("projx(x) = x", projx(s.x), s.x)
    if s.subject.low_rank is not None:
        yield s.equal("projx keeps the tensor", s.subject.dense(point), s.subject.dense(rough))


@check("P3", "the projection on the manifold is quasi-optimal")
def projection_is_quasi_optimal(s: Sample) -> Iterator[Measured]:
    dense = s.subject.dense
    if isinstance(s.subject, LowRankSubject):
        factor = math.sqrt(max(len(ranks_of(s.manifold)), 1))
        away = 0.1 * s.vector()
        z = dense(s.x) + away
        error = length(z - dense(s.manifold.from_dense(s.subject.tensors(z))))
        yield s.at_most(f"|z - from_dense(z)| <= {factor:.3g} |z - x|", error, factor * length(away))
        return
    s.needs_frobenius()
    rough = noisy(s)
    error = length(dense(rough) - dense(s.manifold.projx(rough)))
    for other in (s.x, s.point()):
        yield s.at_most("|z - projx(z)| <= 2 |z - y|", error, 2 * length(dense(rough) - dense(other)))


@check("P4", "pack_point and unpack_tensor are inverse to each other")
def packing(s: Sample) -> Iterator[Measured]:
    unpacked = s.manifold.unpack_tensor(s.x)
    factors = (unpacked,) if isinstance(unpacked, torch.Tensor) else tuple(unpacked)
    packed = s.manifold.pack_point(*factors)
    yield holds("pack_point(*unpack_tensor(x)) = x", torch.equal(packed, s.x))
    yield s.equal("the tensor stays", s.subject.dense(packed), s.subject.dense(s.x))
    if isinstance(s.subject, LowRankSubject):
        shapes = [(*s.batch, *shape) for shape in s.manifold.factor_shapes]
        yield holds(
            "factor_shapes are the shapes of the factors", [tuple(f.shape) for f in factors] == shapes
        )
        own = s.subject.rows(s.manifold.to_dense(s.x))
        yield s.equal("to_dense is the dense embedding", own, s.subject.dense(s.x))
    yield refuses("a missing factor is refused", lambda: s.manifold.pack_point(*factors[:-1]))


@check("P5", "the checks reject what is wrong, with a reason")
def wrong_points(s: Sample) -> Iterator[Measured]:
    def rejected(what: str, x: torch.Tensor, u: torch.Tensor | None = None) -> Measured:
        if u is None:
            ok, reason = s.manifold.check_point_on_manifold(x, explain=True)
        else:
            ok, reason = s.manifold.check_vector_on_tangent(x, u, explain=True)
        return holds(f"{what} is rejected with a reason", not ok and bool(reason))

    if len(s.subject.point_shape) > 1:
        yield rejected("a point without its last axis", s.x.flatten())
    stretched = 2 * s.x + 0.5
    if moved(s, s.manifold.projx(stretched), stretched):
        yield rejected("a point off the manifold", stretched)
    rough = s.normal(*s.subject.point_shape)
    if moved(s, s.manifold.proju(s.x, rough), rough):
        yield rejected("a vector that is not tangent", s.x, rough)
    if s.subject.low_rank is None:
        return
    for value in (math.nan, math.inf):
        broken = s.x.clone()
        broken[..., 0] = value
        yield rejected(f"a point with {value}", broken)
        yield rejected(f"a vector with {value}", s.x, broken)
    longer = torch.cat([s.x, s.x[..., :1]], dim=-1)
    yield rejected("a point of the wrong length", longer)
    yield rejected("a single number", s.x.flatten()[0])
    yield refuses("unpack_tensor refuses the wrong length", lambda: s.manifold.unpack_tensor(longer))


def moved(s: Sample, projected: torch.Tensor, original: torch.Tensor) -> bool:
    """Whether a projection moved every member of the batch, by more than any tolerance."""
    change = length(s.subject.flat(projected - original))
    return bool((change > 0.01 * length(s.subject.flat(original))).all())


def length(rows: torch.Tensor) -> torch.Tensor:
    """Euclidean length of rows."""
    return torch.linalg.vector_norm(rows, dim=-1)


_SPAN_LIMIT = 400


def _dimension_of_span(manifold: LowRankManifold, generator: torch.Generator) -> int:
    """Dimension of the linear span of all tensors of a format, from random ones of full rank."""
    count = manifold.dense_size + 1
    x = manifold.random(count, manifold.size, dtype=torch.float64, generator=generator)
    values = svd(manifold.to_dense(x).reshape(count, -1))[1]
    return int((values > tolerance(torch.float64, count) * values[0]).sum())


@check("P6", "the ranks are those that a tensor can have")
def rank_limits(s: Sample) -> Iterator[Measured]:
    s.low_rank("points of this manifold have no rank")
    manifold, ranks = s.manifold, ranks_of(s.manifold)
    if not ranks:
        raise NotApplicable("this format has no ranks at this shape")
    full = manifold.with_rank(manifold.full_rank)
    if manifold.dense_size <= _SPAN_LIMIT:
        span = _dimension_of_span(full, s.generator)
        yield holds(f"at full rank {full.dim} dimensions of {span}", full.dim == span)
    highest = ranks_of(full)
    for k in range(len(ranks)):
        above = (*highest[:k], highest[k] + 1, *highest[k + 1 :])
        yield refuses(f"rank {above} is refused", partial(manifold.with_rank, above))
        for base, rank in ((ranks, 2), ((1,) * len(ranks), highest[k])):
            try:
                other = manifold.with_rank((*base[:k], rank, *base[k + 1 :]))
            except ValueError:
                continue
            yield from _attained(s, other)
    yield refuses("rank 0 is refused", partial(manifold.with_rank, (0,) * len(ranks)))
    yield from _attained(s, manifold)


def _attained(s: Sample, manifold: LowRankManifold) -> Iterator[Measured]:
    """An accepted rank is that of a random tensor, and gives the manifold the dimension that it claims."""
    sample = Sample(LowRankSubject(manifold), (), torch.float64, s.seed)
    dim = sample.space.dim
    yield holds(f"rank {manifold.rank} is attained: {dim} dimensions of {manifold.dim}", dim == manifold.dim)
    x = manifold.random(dtype=torch.float64, generator=sample.generator)
    for values, rank in zip(manifold.singular_values(x), ranks_of(manifold), strict=True):
        count = int((values > tolerance(torch.float64, manifold.dense_size) * values[:1]).sum())
        yield holds(f"{count} singular values at rank {rank} of {manifold.rank}", count == rank)
