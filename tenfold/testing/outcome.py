"""What a check found: measured errors with their bounds, curves with their slopes, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum

__all__ = ["CheckResult", "Curve", "Measured", "NotApplicable", "Status"]


class NotApplicable(Exception):
    """A check has no meaning for this manifold; the message says why."""


class Status(Enum):
    """The verdict of a check."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Curve:
    """Errors over step lengths, and the slope of their logarithms.

    Attributes
    ----------
    label : str
        What the errors are.
    steps : tuple of float
        Step lengths, descending.
    errors : tuple of float
        One per step.
    order : int
        The slope that theory demands, at least.
    slope : float
        The measured slope; infinity if every error is rounding.
    """

    label: str
    steps: tuple[float, ...]
    errors: tuple[float, ...]
    order: int
    slope: float


@dataclass(frozen=True)
class Measured:
    """One measured error and the bound that it must not exceed.

    Attributes
    ----------
    what : str
        The statement that was measured.
    error, bound : float
        The statement holds if ``error <= bound``; NaN does not.
    curve : Curve or None
        Where the statement is about an order.
    """

    what: str
    error: float
    bound: float
    curve: Curve | None = None

    @property
    def holds(self) -> bool:
        """Whether the error is within its bound."""
        return self.error <= self.bound

    @property
    def ratio(self) -> float:
        """Error over bound: above 1 means failure, NaN counts as infinite."""
        if math.isnan(self.error):
            return math.inf
        if self.bound > 0:
            return self.error / self.bound
        return 0.0 if self.error <= self.bound else math.inf

    def __str__(self) -> str:
        if self.curve is not None:
            return f"{self.what}: slope {self.curve.slope:.2f}, {self.curve.order} is right"
        return f"{self.what}: {self.error:.2g}, at most {self.bound:.2g} is rounding"


@dataclass(frozen=True)
class CheckResult:
    """The result of one check on one or several examples.

    Attributes
    ----------
    id, title : str
        Name of the property and its statement.
    status : Status
        The verdict.
    reason : str
        Why it failed or does not apply; empty if it passed.
    worst : Measured or None
        The measurement with the largest ratio of error to bound.
    curves : tuple of Curve
        Every measured slope of the worst example.
    examples : int
        Number of examples that were measured.
    """

    id: str
    title: str
    status: Status
    reason: str = ""
    worst: Measured | None = None
    curves: tuple[Curve, ...] = field(default=(), repr=False)
    examples: int = 1

    @classmethod
    def of(cls, id: str, title: str, measured: Iterable[Measured], example: str) -> CheckResult:
        """The verdict over the measurements of one example, which ``example`` describes."""
        found = list(measured)
        worst = max(found, key=lambda item: item.ratio, default=None)
        curves = tuple(item.curve for item in found if item.curve is not None)
        failed = [item for item in found if not item.holds]
        if failed:
            reason = f"{max(failed, key=lambda item: item.ratio)} [{example}]"
            return cls(id, title, Status.FAILED, reason, worst, curves)
        return cls(id, title, Status.PASSED, "", worst, curves)

    @property
    def slope(self) -> float | None:
        """The smallest slope that was measured, None if the check measures none."""
        return min((curve.slope for curve in self.curves), default=None)

    def joined(self, other: CheckResult) -> CheckResult:
        """Both results as one: the worse verdict, the worse measurement, the smaller slope."""
        rank = (Status.NOT_APPLICABLE, Status.PASSED, Status.FAILED)
        first, second = sorted((self, other), key=lambda item: rank.index(item.status), reverse=True)
        counted = sum(item.examples for item in (self, other) if item.status is not Status.NOT_APPLICABLE)
        if second.status is not first.status:
            worse = first
        else:
            worse = max(
                (first, second), key=lambda item: item.worst.ratio if item.worst is not None else -1.0
            )
        curves = min((first, second), key=lambda item: math.inf if item.slope is None else item.slope).curves
        return replace(worse, curves=curves or worse.curves, examples=counted)
