"""When ranks are adapted, and how far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from tenfold.manifolds import LowRankManifold, Truncation
from tenfold.manifolds.truncation import check_tolerance, ranks_by_tolerance

__all__ = ["RankAdaptation"]


@dataclass(frozen=True)
class RankAdaptation:
    r"""Rank adaptation by a tolerance, as in TDLRT.

    In an adapted step the retraction keeps, for every rank of the format, the smallest number of
    singular values whose discarded tail is at most ``tol`` times the norm of the tensor. It sees the
    exact sum of point and step, which has up to twice the rank: ranks grow and shrink.

    Parameters
    ----------
    tol : float
        The tolerance ``tau`` in [0, 1). Values between 0.05 and 0.1 are good starting points.
    min_rank : int or float
        Ranks never fall below it. A number below 1 that is a float is a fraction of the full rank.
    max_rank : int, float or None
        Ranks never exceed it; a float is a fraction of the full rank.
    every : int
        Adapt in every ``every``-th step; the steps between keep their ranks and never synchronise.
    start : int
        Number of steps before the first interval begins.
    stop : int or None
        Number of steps after which ranks stay fixed.

    Raises
    ------
    ValueError
        If an argument is out of range.

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
    min_rank: int | float = 1
    max_rank: int | float | None = None
    every: int = 1
    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        check_tolerance(self.tol)
        for name, bound in (("min_rank", self.min_rank), ("max_rank", self.max_rank)):
            fits = bound is None or (0 < bound <= 1 if isinstance(bound, float) else bound >= 1)
            if not fits:
                raise ValueError(f"{name} must be an integer >= 1 or a fraction in (0, 1], got {bound}")
        if self.every < 1:
            raise ValueError(f"every must be at least 1, got {self.every}")
        if self.start < 0:
            raise ValueError(f"start must not be negative, got {self.start}")
        if self.stop is not None and self.stop < self.start:
            raise ValueError(f"stop must not come before start={self.start}, got {self.stop}")

    def due(self, step: int) -> bool:
        """Whether step number ``step``, counted from 1, adapts ranks."""
        if step <= self.start or (self.stop is not None and step > self.stop):
            return False
        return (step - self.start) % self.every == 0

    def truncate(
        self, manifold: LowRankManifold, truncation: Truncation
    ) -> tuple[LowRankManifold, torch.Tensor]:
        """Decide on the ranks and carry the decision out.

        Parameters
        ----------
        manifold : LowRankManifold
            Where the parameter lives now.
        truncation : Truncation
            The spectra of the stepped tensor.

        Returns
        -------
        manifold : LowRankManifold
            Where it will live.
        point : torch.Tensor
            Its new value, packed.
        """
        low = _absolute(self.min_rank, manifold)
        high = _absolute(self.max_rank, manifold)
        if low is not None and high is not None:
            low = [min(pair) for pair in zip(low, high, strict=True)]
        return truncation.to(ranks_by_tolerance(truncation.singular_values, self.tol, low, high))

    def state_dict(self) -> dict[str, Any]:
        """The arguments as plain data."""
        return asdict(self)


def _absolute(bound: int | float | None, manifold: LowRankManifold) -> list[int] | None:
    if bound is None:
        return None
    full = manifold.full_rank
    ranks: Sequence[int] = full if isinstance(full, Sequence) else (full,)
    return [min(r, math.ceil(bound * r) if isinstance(bound, float) else bound) for r in ranks]
