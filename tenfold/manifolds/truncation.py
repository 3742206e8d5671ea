"""Ranks from singular values: the truncation rule and the object that a policy decides on."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from tenfold.linalg import NonFiniteError, rounding_floor

if TYPE_CHECKING:
    from tenfold.manifolds.base import LowRankManifold

__all__ = ["RankBound", "Truncation", "check_tolerance", "rank_tuple", "ranks_by_tolerance"]

RankBound = int | Sequence[int] | None
"""A limit on ranks: one number for all of them, one per rank, or None for no limit."""


def rank_tuple(rank: int | Sequence[int]) -> tuple[int, ...]:
    """The rank of any format as a tuple.

    Parameters
    ----------
    rank : int or sequence of int
        As a manifold's ``rank``: one number, or one for each rank.

    Returns
    -------
    tuple of int
        One number for each rank.
    """
    return (rank,) if isinstance(rank, int) else tuple(rank)


def check_tolerance(tol: float) -> float:
    """Return ``tol`` if it lies in [0, 1), else raise ValueError."""
    if not 0.0 <= tol < 1.0:
        raise ValueError(f"the truncation tolerance must lie in [0, 1), got {tol}")
    return float(tol)


def ranks_by_tolerance(
    singular_values: Sequence[torch.Tensor],
    tol: float,
    min_rank: RankBound = None,
    max_rank: RankBound = None,
) -> tuple[int, ...]:
    r"""Smallest ranks whose discarded tails are within a relative tolerance.

    .. math:: r = \min \{ j : \|\sigma_{j+1:}\|_2 \le \tau \|\sigma\|_2 \}

    for each spectrum by itself, clamped to ``[min_rank, max_rank]`` and to what is there. A tail
    below the rounding of the computation counts as zero, so ``tol=0`` gives the numerical rank.

    Parameters
    ----------
    singular_values : sequence of torch.Tensor
        One spectrum for each rank, shape ``(*batch, k)``, descending. A batch shares its ranks:
        the largest that any member needs.
    tol : float
        The relative tolerance ``tau`` in [0, 1).
    min_rank, max_rank : int, sequence of int or None
        Limits, for all ranks or one by one.

    Returns
    -------
    tuple of int
        One rank per spectrum, each at least 1; those of an empty batch are the smallest that are allowed.
        One synchronisation with the host in all.

    Raises
    ------
    ValueError
        If ``tol`` is outside [0, 1), or a limit has the wrong length, or is below 1, or the
        minimum exceeds the maximum.
    TypeError
        If a limit is neither an integer nor a sequence.
    NonFiniteError
        If a spectrum holds NaN or infinity (a ValueError, too).

    References
    ----------
    Zangrando et al., "Geometry-aware training of factorized layers in tensor Tucker format",
    NeurIPS 2024 (arXiv 2305.19059), truncation step of the algorithm.
    """
    check_tolerance(tol)
    lowest = _bounds(min_rank, len(singular_values), "min_rank", 1)
    highest = _bounds(max_rank, len(singular_values), "max_rank", None)
    for low, high in zip(lowest, highest, strict=True):
        if high is not None and low is not None and low > high:
            raise ValueError(f"min_rank {low} exceeds max_rank {high}")
    if not singular_values:
        return ()
    counts = torch.stack([_count(values, tol) for values in singular_values]).tolist()
    ranks = []
    for count, values, low, high in zip(counts, singular_values, lowest, highest, strict=True):
        if count < 0:
            raise NonFiniteError("ranks cannot be chosen from singular values that are NaN or infinite")
        available = values.shape[-1]
        rank = max(int(count), low or 1)
        ranks.append(min(rank, available if high is None else min(high, available)))
    return tuple(ranks)


def _count(values: torch.Tensor, tol: float) -> torch.Tensor:
    """Number of singular values to keep, the maximum over the batch, or -1; a zero-dimensional tensor."""
    scale = values[..., :1]
    scaled = values / torch.where(scale > 0, scale, torch.ones_like(scale))
    tails = scaled.square().flip(-1).cumsum(-1).flip(-1).sqrt()
    threshold = max(tol, rounding_floor(values.dtype, values.shape[-1])) * tails[..., :1]
    counts = (tails > threshold).sum(-1)
    largest = counts.amax() if counts.numel() else counts.sum()
    return torch.where(tails.isnan().any(), -1, largest)


def _bounds(bound: RankBound, count: int, name: str, default: int | None) -> list[int | None]:
    if bound is None:
        return [default] * count
    if not isinstance(bound, int | Sequence) or isinstance(bound, bool):
        raise TypeError(f"{name} must be an integer or a sequence of integers, got {bound!r}")
    bounds: list[int | None] = [bound] * count if isinstance(bound, int) else list(bound)
    if len(bounds) != count:
        raise ValueError(f"{name} needs one number or {count} of them, got {bound}")
    for item in bounds:
        if not isinstance(item, int) or item < 1:
            raise ValueError(f"{name} must be integers of at least 1, got {bound}")
    return bounds


class Truncation(abc.ABC):
    """The spectra of a tensor in low-rank form, waiting for a decision on the ranks.

    The manifold makes it (:meth:`~tenfold.manifolds.LowRankManifold.truncation`), a policy reads
    ``singular_values`` and decides, :meth:`to` carries the decision out.

    Attributes
    ----------
    singular_values : tuple of torch.Tensor
        For each rank of the format the singular values of the matricisation it belongs to, shape
        ``(*batch, k)``, descending. They are those of the untruncated tensor.
    """

    singular_values: tuple[torch.Tensor, ...]

    @abc.abstractmethod
    def to(self, rank: int | Sequence[int]) -> tuple[LowRankManifold, torch.Tensor]:
        """Truncate to given ranks; ranks that no tensor can have are lowered without loss.

        Parameters
        ----------
        rank : int or sequence of int
            For each spectrum, at most the number of its singular values; one number for all.

        Returns
        -------
        manifold : LowRankManifold
            The manifold of the truncated tensor.
        point : torch.Tensor
            The truncated tensor as a packed point, shape ``(*batch, manifold.size)``.
        """

    def by_tolerance(
        self, tol: float, *, min_rank: RankBound = None, max_rank: RankBound = None
    ) -> tuple[LowRankManifold, torch.Tensor]:
        """Truncate with :func:`ranks_by_tolerance`; see there for the arguments."""
        return self.to(ranks_by_tolerance(self.singular_values, tol, min_rank, max_rank))
