"""Ranks of layers from one tolerance, or from the share of numbers to save."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tenfold.manifolds import TreeManifold, Truncation, ranks_by_tolerance
from tenfold.nn.formats import ranks_at

__all__ = ["LOWEST_FRACTION", "Decomposition", "largest_fraction", "ranks_for", "tolerance_for"]

_HALVINGS = 40

LOWEST_FRACTION = 2.0**-_HALVINGS
"""Of the full rank: at it every rank is 1."""


@dataclass(frozen=True)
class Decomposition:
    """A dense weight in a format, before any truncation.

    Attributes
    ----------
    manifold : TreeManifold
        The format and shape, at any rank.
    truncation : Truncation
        The spectra of the weight.
    dense : int
        Numbers in the dense weight.
    """

    manifold: TreeManifold
    truncation: Truncation
    dense: int

    @classmethod
    def of(cls, manifold: TreeManifold, tensor: torch.Tensor, dense: int | None = None) -> Decomposition:
        """Decompose a tensor of shape ``manifold.shape``.

        Raises
        ------
        ValueError
            If it holds NaN or infinity, or is on the meta device.
        """
        if tensor.is_meta:
            raise ValueError("a weight on the meta device has no numbers to approximate")
        if not torch.isfinite(tensor).all():
            raise ValueError("the weight holds NaN or infinity")
        exact, x = manifold.approximate(tensor)
        return cls(manifold, exact.truncation(x), manifold.dense_size if dense is None else dense)

    def ranks(self, tol: float) -> tuple[int, ...]:
        """Ranks at which the relative error of the tensor is at most ``tol``.

        The squared error is at most the sum of the squared tails, so each rank gets its share of it.
        """
        spectra = self.truncation.singular_values
        return ranks_by_tolerance(spectra, tol / max(1, len(spectra)) ** 0.5)

    def stored(self, ranks: Sequence[int]) -> int:
        """Numbers in the factors at these ranks, lowered to what is feasible."""
        return self.manifold.size_at(ranks)


def tolerance_for(compression: float, decompositions: Sequence[Decomposition]) -> float:
    """The smallest tolerance, common to all, that saves a share of all numbers.

    Parameters
    ----------
    compression : float
        The share in [0, 1).
    decompositions : sequence of Decomposition
        The weights. One that would get larger counts as dense.

    Returns
    -------
    float
        To 2^-30.

    Raises
    ------
    ValueError
        If the share is outside [0, 1) or more than rank 1 would save.
    """
    _check(compression)
    dense = sum(d.dense for d in decompositions)

    def saved(tol: float) -> float:
        return 1 - sum(min(d.dense, d.stored(d.ranks(tol))) for d in decompositions) / dense if dense else 0.0

    low, high = 0.0, 1 - 2**-30
    if saved(high) < compression:
        raise ValueError(
            f"compression {compression} cannot be reached: at the lowest ranks it is {saved(high):.4f}"
        )
    while high - low > 2**-30:
        middle = (low + high) / 2
        low, high = (low, middle) if saved(middle) >= compression else (middle, high)
    return high


def ranks_for(compression: float, manifold: TreeManifold, dense: int) -> tuple[int, ...]:
    """The ranks at the largest fraction of the whole at which one weight saves a share of its numbers.

    Parameters
    ----------
    compression : float
        The share in [0, 1).
    manifold : TreeManifold
        The format and shape, at any rank.
    dense : int
        Numbers in the dense weight.

    Raises
    ------
    ValueError
        If the share is outside [0, 1) or more than rank 1 saves.
    """
    _check(compression)
    allowed = (1 - compression) * dense
    fraction = largest_fraction(lambda f: manifold.size_at(ranks_at(manifold, f)) <= allowed)
    if fraction is None:
        reached = 1 - manifold.size_at(ranks_at(manifold, LOWEST_FRACTION)) / dense
        raise ValueError(
            f"compression {compression} cannot be reached: at the lowest ranks it is {reached:.4f}"
        )
    return ranks_at(manifold, fraction)


def largest_fraction(fits: Callable[[float], bool]) -> float | None:
    """The largest fraction in (0, 1], to 2^-40, of those up to which all fit; None if none does."""
    low, high = LOWEST_FRACTION, 1.0
    if not fits(low):
        return None
    if fits(high):
        return high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _check(compression: float) -> None:
    if not 0 <= compression < 1:
        raise ValueError(f"compression must lie in [0, 1), got {compression}")
