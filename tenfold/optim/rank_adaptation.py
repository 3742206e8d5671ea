"""Ranks by tolerance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tenfold.manifolds.truncation import check_tolerance, ranks_by_tolerance
from tenfold.optim.rank_policy import Pending, RankPolicy, Ranks

__all__ = ["EnergyAdaptation", "RankAdaptation"]


@dataclass(frozen=True)
class RankAdaptation(RankPolicy):
    r"""Rank adaptation by a tolerance for each rank, as in TDLRT.

    In an adapted step the retraction keeps, for every rank of the format, the smallest number of
    singular values whose discarded tail is at most ``tol`` times the norm of the tensor. It sees the
    exact sum of point and step, which has up to twice the rank: ranks grow and shrink.

    Parameters
    ----------
    tol : float
        The tolerance ``tau`` in [0, 1). Values between 0.05 and 0.1 are good starting points.
    final_tol : float or None
        The tolerance of the last decision before ``stop``, approached geometrically from ``tol`` at step
        ``start`` (linearly if one of them is 0); None keeps ``tol``.
    min_rank, max_rank, every, start, stop, multiple_of, hysteresis, oversampling
        As for :class:`RankPolicy`.

    Raises
    ------
    ValueError
        If an argument is out of range, or ``final_tol`` is given without ``stop``.

    References
    ----------
    Zangrando et al., "Geometry-aware training of factorized layers in tensor Tucker format",
    NeurIPS 2024 (arXiv 2305.19059).

    Examples
    --------
    >>> policy = RankAdaptation(tol=0.1, every=10, stop=1000)
    >>> [step for step in range(1, 31) if policy.due(step)]
    [10, 20, 30]
    """

    tol: float
    final_tol: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tolerance(self.tol)
        if self.final_tol is not None:
            check_tolerance(self.final_tol)
            if self.stop is None:
                raise ValueError("final_tol needs a step to be reached at: give stop, too")

    def tolerance(self, step: int) -> float:
        """The tolerance of a step, counted from 1."""
        if self.final_tol is None:
            return self.tol
        part = self.progress(step)
        if self.tol and self.final_tol:
            return math.exp((1 - part) * math.log(self.tol) + part * math.log(self.final_tol))
        return (1 - part) * self.tol + part * self.final_tol

    def wanted(
        self, pending: Sequence[Pending], limits: Sequence[list[tuple[int, int]]], step: int
    ) -> list[Ranks]:
        tol, spare = self.tolerance(step), self.spare(step)
        return [
            _with_spare(ranks_by_tolerance(item.truncation.singular_values, tol), item, spare)
            for item in pending
        ]


@dataclass(frozen=True)
class EnergyAdaptation(RankPolicy):
    r"""Ranks by one tolerance for the whole tensor.

    The discarded tails of all ranks of a tensor together obey

    .. math:: \sqrt{\textstyle\sum_i \|\sigma^{(i)}_{r_i + 1:}\|^2} \le \tau \|W\|,

    so that the error of the truncation is at most ``tol`` times its norm. Among the discarded singular
    values are the smallest ones of the tensor, whichever rank they belong to.

    Parameters
    ----------
    tol : float
        The tolerance ``tau`` in [0, 1).
    min_rank, max_rank, every, start, stop, multiple_of, hysteresis, oversampling
        As for :class:`RankPolicy`.
    """

    tol: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tolerance(self.tol)

    def wanted(
        self, pending: Sequence[Pending], limits: Sequence[list[tuple[int, int]]], step: int
    ) -> list[Ranks]:
        spare = self.spare(step)
        return [_with_spare(self._ranks(item.truncation.singular_values), item, spare) for item in pending]

    def _ranks(self, spectra: Sequence[torch.Tensor]) -> Ranks:
        exact = ranks_by_tolerance(spectra, 0.0)
        shared = relative_spectra(spectra)
        budget = self.tol**2
        ranks = list(exact)
        order = sorted((value, k, j) for k, values in enumerate(shared) for j, value in enumerate(values))
        for value, k, j in order:
            if j >= exact[k]:
                continue
            budget -= value**2
            if budget < 0:
                break
            ranks[k] = min(ranks[k], max(j, 1))
        return tuple(ranks)


def clear_ranks(item: Pending) -> Ranks:
    """How many directions of each rank are large enough for a gradient to keep two digits in them."""
    spectra = item.truncation.singular_values
    return ranks_by_tolerance(spectra, 100 * torch.finfo(spectra[0].dtype).eps)


def _with_spare(ranks: Ranks, item: Pending, spare: int) -> Ranks:
    """Ranks with so many clear directions more."""
    if not spare:
        return ranks
    return tuple(
        max(rank, min(rank + spare, most)) for rank, most in zip(ranks, clear_ranks(item), strict=True)
    )


def relative_spectra(spectra: Sequence[torch.Tensor]) -> list[list[float]]:
    """Singular values of every rank divided by the norm of the tensor, the largest in a batch; on the host.

    A tail of these bounds that of every member.
    """
    relative = []
    for values in spectra:
        scale = values[..., :1]
        scaled = values / torch.where(scale > 0, scale, torch.ones_like(scale))
        norm = scaled.norm(dim=-1, keepdim=True)
        scaled = scaled / torch.where(norm > 0, norm, torch.ones_like(norm))
        relative.append(scaled.reshape(-1, values.shape[-1]).amax(0).tolist())
    return relative
