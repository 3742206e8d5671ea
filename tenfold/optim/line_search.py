"""A step length along a curve: SciPy's strong Wolfe search, with a first guess and a last resort."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import line_search

from tenfold.optim.hyperparameters import check_whole

__all__ = ["Trial", "WolfeSearch"]


@dataclass(frozen=True)
class Trial:
    r"""A function along a search curve at one step length.

    Attributes
    ----------
    length : float
        The step length ``a``.
    loss : float
        ``phi(a)``; infinity where the function is not finite.
    slope : float
        ``phi'(a)``.
    """

    length: float
    loss: float
    slope: float


@dataclass(frozen=True)
class WolfeSearch:
    r"""Find a step length that satisfies the strong Wolfe conditions.

    .. math::

        \phi(a) &\le \phi(0) + c_1 a \phi'(0) \\
        |\phi'(a)| &\le c_2 |\phi'(0)|

    The search is :func:`scipy.optimize.line_search` (Nocedal and Wright, algorithms 3.5 and 3.6) in the
    variable ``t = a / guess``: SciPy never tries a longer first step than 1, so the guess goes into the
    scale. Should SciPy give up, the last resort is the trial with the smallest loss among those that satisfy
    the first condition, or, where rounding hides the decrease, those that satisfy the second without raising
    the loss by more than rounding (Hager and Zhang's approximate Wolfe conditions).

    Parameters
    ----------
    decrease : float
        ``c_1``, in (0, 1/2).
    curvature : float
        ``c_2``, in (c_1, 1). 0.1 is usual for conjugate gradients, 0.9 for quasi-Newton methods.
    max_doublings : int
        How often the first guess may be doubled.

    Raises
    ------
    ValueError
        If a constant is out of range.

    References
    ----------
    Nocedal and Wright, "Numerical Optimization", 2nd edition, 2006, section 3.5. Hager and Zhang, "A new
    conjugate gradient method with guaranteed descent and an efficient line search", SIAM J. Optim. 2005.
    """

    decrease: float = 1e-4
    curvature: float = 0.1
    max_doublings: int = 20

    def __post_init__(self) -> None:
        if not 0 < self.decrease < 0.5:
            raise ValueError(f"decrease must lie in (0, 0.5), got {self.decrease}")
        if not self.decrease < self.curvature < 1:
            raise ValueError(f"curvature must lie in (decrease={self.decrease}, 1), got {self.curvature}")
        check_whole("max_doublings", self.max_doublings)

    def __call__(
        self, phi: Callable[[float], Trial], start: Trial, guess: float, rounding: float
    ) -> Trial | None:
        """Search.

        Parameters
        ----------
        phi : callable
            Evaluates loss and slope at a step length; called once for each.
        start : Trial
            What holds at length 0; the slope must be negative.
        guess : float
            First length to try.
        rounding : float
            Relative change of the loss that is rounding.

        Returns
        -------
        Trial or None
            The accepted one, or None if no length can be accepted.

        Raises
        ------
        ValueError
            If the slope is not negative or the guess not a positive number.
        """
        if not start.slope < 0:
            raise ValueError(f"a line search needs a negative slope, got {start.slope}")
        if not 0 < guess < math.inf:
            raise ValueError(f"guess must be a positive number, got {guess}")
        trials: dict[float, Trial] = {}

        def at(t: np.ndarray) -> Trial:
            length = float(t[0]) * guess
            if length not in trials:
                trials[length] = start if length == 0 else phi(length)
            return trials[length]

        with warnings.catch_warnings():
            # SciPy's way to say that it gave up; the answer None says so, too.
            warnings.filterwarnings("ignore", category=RuntimeWarning)
            found, *_, slope = line_search(
                lambda t: at(t).loss,
                lambda t: np.array([at(t).slope * guess]),
                np.zeros(1),
                np.ones(1),
                gfk=np.array([start.slope * guess]),
                old_fval=start.loss,
                c1=self.decrease,
                c2=self.curvature,
                maxiter=self.max_doublings,
            )
        if found is not None and slope is not None:
            return trials[float(found) * guess]
        trials.pop(0.0, None)
        usable = [t for t in trials.values() if self._acceptable(t, start, rounding)]
        return min(usable, key=lambda t: t.loss, default=None)

    def _acceptable(self, trial: Trial, start: Trial, rounding: float) -> bool:
        if trial.loss <= start.loss + self.decrease * trial.length * start.slope:
            return trial.loss < start.loss
        unchanged = trial.loss <= start.loss + rounding * abs(start.loss)
        return unchanged and abs(trial.slope) <= self.curvature * abs(start.slope)
