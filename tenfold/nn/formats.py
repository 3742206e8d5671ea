"""The formats of a layer's weight, and what a rank means in each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import TypeAlias, TypeVar

from tenfold.manifolds import FixedRankManifold, TensorTrainManifold, TreeManifold, TuckerManifold

__all__ = ["Format", "RankLike", "fixed_rank_manifold", "tensor_train_manifold", "tucker_manifold"]

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
    lowest = TuckerManifold(shape, 1, modes)
    return _at(lowest, rank, [shape[m] for m in lowest.modes], inverse_free)


def fixed_rank_manifold(
    shape: Sequence[int], rank: RankLike, inverse_free: bool = False
) -> FixedRankManifold:
    """The manifold of matrices of fixed rank; a fraction is one of the smaller side.

    Parameters and errors as for :func:`tucker_manifold`.
    """
    return _at(FixedRankManifold(shape, 1), rank, [min(shape)], inverse_free)


def tensor_train_manifold(
    shape: Sequence[int], rank: RankLike, rows: int = 0, inverse_free: bool = False
) -> TensorTrainManifold:
    """The manifold of Tensor Trains; a fraction is one of the largest rank at each cut.

    Parameters and errors as for :func:`tucker_manifold`; ``rows`` as for
    :class:`~tenfold.manifolds.TensorTrainManifold`.
    """
    lowest = TensorTrainManifold(shape, 1, rows=rows)
    return _at(lowest, rank, lowest.full_rank, inverse_free)


def _at(lowest: _Tree, rank: RankLike, full: Sequence[int], inverse_free: bool) -> _Tree:
    """The manifold at a rank given in one of the ways of :data:`RankLike`."""
    if inverse_free:
        lowest = lowest.lifted()
    if isinstance(rank, Sequence):
        return lowest.with_rank(rank)
    if isinstance(rank, float):
        if not 0 < rank <= 1:
            raise ValueError(f"a rank given as a fraction must lie in (0, 1], got {rank}")
        wanted = [math.ceil(rank * size) for size in full]
    else:
        wanted = [rank] * len(full)
    if min(wanted, default=1) < 1:
        raise ValueError(f"ranks must be at least 1, got {rank}")
    return lowest.with_rank(lowest.tree.clip(lowest.shape, wanted))
