"""Which view of a manifold the kit takes."""

from __future__ import annotations

import geoopt

from tenfold.manifolds import LowRankManifold
from tenfold.testing.ambient import AmbientSubject
from tenfold.testing.subject import Embedding, LowRankSubject, Subject

__all__ = ["subject_of"]


def subject_of(
    manifold: geoopt.Manifold,
    *,
    shape: tuple[int, ...] | None = None,
    embed: Embedding | None = None,
    order: int | None = None,
) -> Subject:
    """The view of a manifold that fits its kind.

    Parameters
    ----------
    manifold : geoopt.Manifold
        The manifold under test.
    shape : tuple of int or None
        Shape of a point; for manifolds that do not know it themselves.
    embed : callable or None
        The dense embedding of a low-rank manifold, if not its own.
    order : int or None
        The claimed order of its retraction, if it does not state one.

    Raises
    ------
    TypeError
        If it is not a ``geoopt.Manifold``.
    ValueError
        If an argument does not apply to this kind of manifold, or a shape is needed.
    """
    if not isinstance(manifold, geoopt.Manifold):
        raise TypeError(f"a geoopt.Manifold is needed, got {manifold!r} of type {type(manifold).__name__}")
    if order is not None and order not in (1, 2):
        raise ValueError(f"the order of a retraction is 1 or 2, got {order}")
    if isinstance(manifold, LowRankManifold):
        if shape is not None and tuple(shape) != (manifold.size,):
            raise ValueError(f"a point of {manifold} has the shape {(manifold.size,)}, got shape={shape}")
        return LowRankSubject(manifold, embed=embed, order=order)
    if embed is not None:
        raise ValueError(f"the points of {manifold} are their own embedding: embed must be None")
    if any(isinstance(part, LowRankManifold) for part in manifold.modules()):
        raise ValueError(f"{manifold} stores coordinates of a low-rank manifold: check that manifold itself")
    return AmbientSubject(manifold, shape=shape, order=order)
