"""What a step of an optimizer with a line search did."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tenfold.optim.line_search import Trial

__all__ = ["LineSearchReport", "Outcome"]


class Outcome(Enum):
    """Why a step ended."""

    ITERATIONS = "iterations"
    """``max_iter`` iterations were done."""
    CONVERGED = "converged"
    """The norm of the gradient fell to ``tolerance_grad``."""
    STALLED = "stalled"
    """No step length lowers the loss any more: the gradient is as small as rounding lets it be."""


@dataclass(frozen=True)
class LineSearchReport:
    """What happened in a step.

    Attributes
    ----------
    outcome : Outcome
        Why it ended.
    loss : float
        The loss after the step.
    gradient_norm : float
        Norm of the Riemannian gradient after the step.
    accepted : tuple of (Trial, Trial)
        One pair per iteration: where the line search started (length 0) and what it accepted.
    evaluations : int
        How often the closure was called.
    """

    outcome: Outcome
    loss: float
    gradient_norm: float
    accepted: tuple[tuple[Trial, Trial], ...]
    evaluations: int
