"""M: the metric."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tenfold.testing.check import check
from tenfold.testing.outcome import Measured, NotApplicable
from tenfold.testing.properties.tangents import combination
from tenfold.testing.sample import Sample, holds

__all__: list[str] = []


def _column(values: torch.Tensor) -> torch.Tensor:
    return values.unsqueeze(-1)


def _scale(s: Sample, u: torch.Tensor, v: torch.Tensor) -> float:
    """What products of ``u`` and ``v`` are compared with; metrics differ in size from point to point."""
    return float(torch.maximum(s.inner(s.x, u), s.inner(s.x, v)).max())


@check("M1", "the metric is symmetric, bilinear and positive")
def bilinear(s: Sample) -> Iterator[Measured]:
    u, v, both = combination(s)
    w = s.tangent()
    inner, scale = s.inner, _scale(s, u, v)
    uv = inner(s.x, u, v)
    axes = (1,) * len(s.subject.point_shape)
    kept, dropped = s.manifold.inner(s.x, u, v, keepdim=True), s.manifold.inner(s.x, u, v)
    yield holds("keepdim=True keeps the dimensions of a point", kept.shape == (*s.batch, *axes))
    yield holds(
        f"batch {s.batch} gives inner products of shape {tuple(dropped.shape)}", dropped.shape == s.batch
    )
    yield s.equal("keepdim changes no value", _column(dropped), _column(uv), scale=scale)
    yield s.equal("<u, v> = <v, u>", _column(inner(s.x, v, u)), _column(uv), scale=scale)
    apart = 2 * inner(s.x, u, w) - 0.5 * inner(s.x, v, w)
    yield s.equal("<2 u - v / 2, w>", _column(inner(s.x, both, w)), _column(apart), scale=_scale(s, both, w))
    yield holds("<u, u> > 0", bool((inner(s.x, u) > 0).all()) or s.space.dim == 0)
    yield s.equal("<u> = <u, u>", _column(inner(s.x, u)), _column(inner(s.x, u, u)), scale=scale)


@check("M2", "the metric is the Frobenius product of the surrounding space")
def frobenius(s: Sample) -> Iterator[Measured]:
    s.needs_frobenius()
    u, v, both = combination(s)
    for a, b in ((u, v), (u, u), (both, v)):
        want = (s.subject.tangent(s.x, a) * s.subject.tangent(s.x, b)).sum(-1)
        yield s.equal("<u, v>", _column(s.inner(s.x, a, b)), _column(want), scale=_scale(s, a, b))


@check("M3", "the norm is that of the metric, homogeneous, and obeys the inequalities")
def norm(s: Sample) -> Iterator[Measured]:
    u, v, _ = combination(s)
    inner = s.inner

    def norms(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return s.manifold.norm(x, v, keepdim=True).reshape(s.batch)

    size = float(torch.maximum(norms(s.x, u), norms(s.x, v)).max())
    yield s.equal("|u|^2 = <u, u>", _column(norms(s.x, u) ** 2), _column(inner(s.x, u)), scale=size**2)
    yield s.equal("|-3 u| = 3 |u|", _column(norms(s.x, -3 * u)), _column(3 * norms(s.x, u)), scale=size)
    yield s.at_most("|u + v| <= |u| + |v|", norms(s.x, u + v), norms(s.x, u) + norms(s.x, v), scale=size)
    product = inner(s.x, u, v).abs()
    yield s.at_most("|<u, v>| <= |u| |v|", product, norms(s.x, u) * norms(s.x, v), scale=size**2)
    dropped = s.manifold.norm(s.x, u)
    yield holds(f"batch {s.batch} gives norms of shape {tuple(dropped.shape)}", dropped.shape == s.batch)
    yield s.equal("keepdim changes no value", _column(dropped), _column(norms(s.x, u)), scale=size)


@check("M4", "component_inner sums to inner")
def components(s: Sample) -> Iterator[Measured]:
    if hasattr(s.manifold, "manifolds"):
        raise NotApplicable("a product repeats the product of each component over its entries")
    u, v = s.tangent(), s.tangent()
    parts = s.manifold.component_inner(s.x, u, v)
    want, scale = s.inner(s.x, u, v), _scale(s, u, v)
    torch.broadcast_shapes(parts.shape, s.x.shape)  # what Adam does with it
    total = parts.sum(dim=tuple(range(len(s.batch), parts.ndim)))
    yield s.equal("the sum of component_inner", _column(total), _column(want), scale=scale)
    alone = s.manifold.component_inner(s.x, u).sum(dim=tuple(range(len(s.batch), parts.ndim)))
    yield s.equal("of one vector", _column(alone), _column(s.inner(s.x, u)), scale=scale)
