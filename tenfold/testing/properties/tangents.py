"""T: tangent vectors."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tenfold.linalg import svd
from tenfold.testing.check import check
from tenfold.testing.outcome import Measured
from tenfold.testing.properties.points import length
from tenfold.testing.sample import Sample, holds

__all__ = ["is_tangent"]


def is_tangent(s: Sample, what: str, x: torch.Tensor, u: torch.Tensor) -> Iterator[Measured]:
    """The manifold's own check accepts vectors, and ``proju`` leaves them alone."""
    size = float(u.abs().max()) if u.numel() else 0.0
    atol = s.tolerance() * max(size, 1.0)
    ok, reason = s.manifold.check_vector_on_tangent(x, u, explain=True, atol=atol, rtol=atol)
    yield holds(what if ok else f"{what}: {reason}", ok)
    yield s.same_points(f"{what}: proju leaves it alone", s.manifold.proju(x, u), u)


def combination(s: Sample) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two tangent vectors and a linear combination of them, ``2 u - v / 2``."""
    u, v = s.tangent(), s.tangent()
    return u, v, 2 * u - 0.5 * v


@check("T1", "proju enforces the conditions that make a vector tangent")
def gauge_conditions(s: Sample) -> Iterator[Measured]:
    rough = s.normal(*s.subject.point_shape)
    u = s.manifold.proju(s.x, rough)
    yield from is_tangent(s, "proju(x, z) is tangent", s.x, u)
    dense = s.subject.tangent(s.x, u)
    yield s.zero("its part outside of the tangent space", s.space.normal(dense), against=s.space)


@check("T2", "the tangent space has the dimension of the manifold")
def dimension(s: Sample) -> Iterator[Measured]:
    s = s.but(dtype=torch.float64)
    low_rank, space = s.subject.low_rank, s.space
    if low_rank is not None:
        yield holds(f"the dimension is {space.dim}, claimed are {low_rank.dim}", space.dim == low_rank.dim)
    yield holds("it is the same at every point", space.dim == space.smallest_dim)
    many = s.but(batch=(space.dim + 1, *s.batch))
    x = s.x.expand(space.dim + 1, *s.x.shape).contiguous()
    tangents = s.subject.tangent(x, many.tangent(x))
    yield s.zero("random tangent vectors lie in the tangent space", space.normal(tangents), against=space)
    values = svd(tangents.movedim(0, -2))[1]
    noise = s.tolerance(space.condition) + space.error
    ranks = (values > noise * values[..., :1]).sum(-1)
    span = sorted(set(ranks.flatten().tolist()))
    yield holds(f"{space.dim + 1} of them span {span} dimensions", span == [space.dim])


@check("T3", "coordinates and tangent tensors correspond linearly, one to one, isometrically")
def coordinates(s: Sample) -> Iterator[Measured]:
    subject = s.low_rank("tangent vectors are stored as vectors of the surrounding space")
    u, v, both = combination(s)
    dense_u, dense_v = subject.tangent(s.x, u), subject.tangent(s.x, v)
    yield s.equal("linear", subject.tangent(s.x, both), 2 * dense_u - 0.5 * dense_v, scale=1.0)
    yield s.equal("isometric", length(dense_u).unsqueeze(-1), length(u).unsqueeze(-1), scale=1.0)
    yield s.equal("one to one", subject.project(s.x, dense_u), u, scale=1.0)


@check("T4", "the point itself is tangent")
def cone(s: Sample) -> Iterator[Measured]:
    subject = s.low_rank("this manifold is not known to be a cone")
    radial, dense = s.manifold.radial(s.x), subject.dense(s.x)
    yield from is_tangent(s, "radial(x) is tangent", s.x, radial)
    yield s.equal("the tensor of radial(x) is that of x", subject.tangent(s.x, radial), dense)
    yield s.zero("the part of x outside of the tangent space", s.space.normal(dense), against=s.space)


@check("T5", "linear combinations of tangent vectors are tangent")
def linear_combinations(s: Sample) -> Iterator[Measured]:
    _, _, both = combination(s)
    yield from is_tangent(s, "2 u - v / 2 is tangent", s.x, both)
    outside = s.space.normal(s.subject.tangent(s.x, both))
    yield s.zero("its part outside of the tangent space", outside, against=s.space)
