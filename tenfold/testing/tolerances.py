"""How large an error may be: from the unit roundoff, the size and the conditioning, in one place."""

from __future__ import annotations

import torch

from tenfold.linalg import rounding_floor

__all__ = ["CHAIN", "SLOPE_MARGIN", "difference_step", "tolerance"]

CHAIN = 4
"""Backward stable decompositions that one operation of a manifold chains, at most."""

SLOPE_MARGIN = 0.1
"""By how much a measured slope may miss the order that it measures."""


def tolerance(dtype: torch.dtype, size: int, condition: float = 1.0) -> float:
    r"""Relative error that rounding explains.

    A decomposition is backward stable within :func:`~tenfold.linalg.rounding_floor`,
    ``8 eps sqrt(size)``; an operation chains :data:`~tenfold.testing.tolerances.CHAIN` of them, and the
    quantity that is compared reacts to such a perturbation of its input with a condition number:

    .. math:: 4 \cdot 8\,\varepsilon\,\sqrt{\mathrm{size}}\;\kappa .

    Parameters
    ----------
    dtype : torch.dtype
        Type in which the operation was computed.
    size : int
        Number of entries of what is compared.
    condition : float
        Condition number of the result as a function of the point; 1 for what is computed with
        orthogonal transformations alone.

    Returns
    -------
    float
        The relative tolerance.

    References
    ----------
    Higham, "Accuracy and Stability of Numerical Algorithms", 2002, chapters 3 and 19.
    """
    return CHAIN * rounding_floor(dtype, size) * max(condition, 1.0)


def difference_step(dtype: torch.dtype) -> float:
    """Step of a central difference that balances rounding against the third derivative."""
    return float(torch.finfo(dtype).eps ** (1 / 3))
