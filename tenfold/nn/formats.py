"""The formats of a layer's weight, and what a rank means in each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import TypeAlias, TypeVar

from tenfold.manifolds import (
    FixedRankManifold,
    TensorTrainManifold,
    TreeManifold,
    TuckerManifold,
    rank_tuple,
)

__all__ = [
    "Format",
    "RankLike",
    "fixed_rank_manifold",
    "ranks_at",
    "tensor_train_manifold",
    "tucker_manifold",
]

RankLike: TypeAlias = int | float | Sequence[int]
"""Ranks of a layer: a fraction in (0, 1] of every rank, one number for all ranks (both are
lowered to what is feasible), or one number per rank (which must be feasible)."""

_Tree = TypeVar("_Tree", bound=TreeManifold)


class Format(str, Enum):
    """How the weight of a layer is stored."""

    TUCKER = "tucker"
    """A core and one orthonormal factor for every compressed mode."""
    FIXED_RANK = "fixed-rank"
    """A matrix ``U S V^T``; a convolution's kernel is unfolded to ``out x (in k_1 k_2 ...)``."""
    TENSOR_TRAIN = "tensor-train"
    """A train of cores: for a matrix over tensorized features, for a kernel over in, window and out."""


def tucker_manifold(
    shape: Sequence[int], rank: RankLike, modes: Sequence[int], inverse_free: bool = False
) -> TuckerManifold:
    """The Tucker manifold for a weight of the given shape.

    Parameters
    ----------
    shape : sequence of int
        Shape of the tensor.
    rank : int, float or sequence of int
        See :data:`RankLike`; a fraction is one of the size of each compressed mode.
    modes : sequence of int
        The compressed modes.
    inverse_free : bool
        Lift the manifold; see :meth:`~tenfold.manifolds.TreeManifold.lifted`.

    Raises
    ------
    ValueError
        If a fraction is not in (0, 1] or explicit ranks are not feasible.
    """
    return _at(TuckerManifold(shape, 1, modes), rank, inverse_free)


def fixed_rank_manifold(
    shape: Sequence[int], rank: RankLike, inverse_free: bool = False
) -> FixedRankManifold:
    """The manifold of matrices of fixed rank; a fraction is one of the smaller side.

    Parameters and errors as for :func:`tucker_manifold`.
    """
    return _at(FixedRankManifold(shape, 1), rank, inverse_free)


def tensor_train_manifold(
    shape: Sequence[int], rank: RankLike, rows: int = 0, inverse_free: bool = False
) -> TensorTrainManifold:
    """The manifold of Tensor Trains; a fraction is one of the largest rank at each cut.

    Parameters and errors as for :func:`tucker_manifold`; ``rows`` as for
    :class:`~tenfold.manifolds.TensorTrainManifold`.
    """
    return _at(TensorTrainManifold(shape, 1, rows=rows), rank, inverse_free)


def ranks_at(manifold: TreeManifold, fraction: float) -> tuple[int, ...]:
    """The ranks of a manifold's shape and format at a fraction, lowered to what is feasible.

    Raises
    ------
    ValueError
        If the fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"a rank given as a fraction must lie in (0, 1], got {fraction}")
    wanted = [math.ceil(fraction * size) for size in _whole(manifold)]
    return manifold.tree.clip(manifold.shape, wanted)


def _whole(manifold: TreeManifold) -> Sequence[int]:
    """What a rank that is given as a fraction is a fraction of."""
    if isinstance(manifold, TuckerManifold):
        return [manifold.shape[m] for m in manifold.modes]
    return rank_tuple(manifold.full_rank)


def _at(lowest: _Tree, rank: RankLike, inverse_free: bool) -> _Tree:
    """The manifold at a rank given in one of the ways of :data:`RankLike`."""
    if inverse_free:
        lowest = lowest.lifted()
    if isinstance(rank, Sequence):
        return lowest.with_rank(rank)
    if isinstance(rank, float):
        return lowest.with_rank(ranks_at(lowest, rank))
    if rank < 1:
        raise ValueError(f"ranks must be at least 1, got {rank}")
    wanted = [rank] * len(rank_tuple(lowest.rank))
    return lowest.with_rank(lowest.tree.clip(lowest.shape, wanted))
