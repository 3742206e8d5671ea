"""Tolerances derived from the unit roundoff and the size of the problem."""

from __future__ import annotations

import math

import torch

__all__ = ["rounding_floor"]


def rounding_floor(dtype: torch.dtype, size: int) -> float:
    """Relative size below which a computed singular value is rounding noise.

    The singular values of a computed triangular factor are those of a matrix within a small
    multiple of ``eps * sqrt(size)`` (relative, in the Frobenius norm) of the exact one (Higham,
    "Accuracy and Stability of Numerical Algorithms", chapter 19), so a tail below this floor
    carries no information and would only over-rank.

    Parameters
    ----------
    dtype : torch.dtype
        Floating-point type in which the decomposition was computed.
    size : int
        Number of columns of the decomposed matrix.

    Returns
    -------
    float
        ``8 * eps * sqrt(size)``.
    """
    return 8.0 * torch.finfo(dtype).eps * math.sqrt(max(size, 1))
