"""What numbers the hyperparameters of optimizers are."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

__all__ = ["check_number", "check_whole"]


def check_number(name: str, value: Any, below: float = math.inf) -> None:
    """Raise ValueError unless a hyperparameter is a number in ``[0, below)``.

    Parameters
    ----------
    name : str
        Names it in the error.
    value : object
        What was given for it.
    below : float
        The end of the interval, which is outside.
    """
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not 0 <= value < below:
        raise ValueError(f"{name} must be a number in [0, {below}), got {value!r}")


def check_whole(name: str, value: Any) -> None:
    """Raise ValueError unless a hyperparameter is an integer of at least 1.

    Parameters
    ----------
    name : str
        Names it in the error.
    value : object
        What was given for it.
    """
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
