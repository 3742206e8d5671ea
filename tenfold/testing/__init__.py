"""A property kit for low-rank manifolds, and for others of geoopt as far as it applies.

:func:`check_manifold` checks a manifold in one line, :func:`check_gradient` a function on it,
:func:`check_first_step` an optimizer; :class:`LowRankManifoldTestCase` is a test case to inherit. Every
check is in :data:`CHECKS` under its id. The test case and the strategies need hypothesis and pytest, the
rest needs nothing that the library does not need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tenfold.testing import properties  # enters the checks
from tenfold.testing.check import CHECKS, Check
from tenfold.testing.gradients import check_gradient
from tenfold.testing.memory import peak
from tenfold.testing.optimizer import check_first_step
from tenfold.testing.outcome import CheckResult, Curve, Measured, Status
from tenfold.testing.points import Spectrum, other_gauge, point_with
from tenfold.testing.report import Report, check_manifold
from tenfold.testing.tolerances import tolerance

if TYPE_CHECKING:
    from tenfold.testing import strategies
    from tenfold.testing.case import LowRankManifoldTestCase

__all__ = [
    "CHECKS",
    "Check",
    "CheckResult",
    "Curve",
    "LowRankManifoldTestCase",
    "Measured",
    "Report",
    "Spectrum",
    "Status",
    "check_first_step",
    "check_gradient",
    "check_manifold",
    "other_gauge",
    "peak",
    "point_with",
    "properties",
    "strategies",
    "tolerance",
]


def __getattr__(name: str) -> Any:
    """What needs hypothesis and pytest, when it is first asked for."""
    if name == "LowRankManifoldTestCase":
        return import_module("tenfold.testing.case").LowRankManifoldTestCase
    if name == "strategies":
        return import_module("tenfold.testing.strategies")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
