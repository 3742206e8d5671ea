"""Slopes: the order of an approximation, measured without ``exp`` and ``dist``."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable

import torch

from tenfold.testing.outcome import Curve, Measured
from tenfold.testing.tolerances import SLOPE_MARGIN

__all__ = ["along", "has_order", "measure"]

_STEPS = 13
_DECADES = 3.0
_FEWEST = 5
_NEGLIGIBLE = (1e-12, 2e-12, 3e-12)
_CLEAR = 50
"""How many times the floor an error has to be, so that its logarithm is off by a fiftieth at most."""


def measure(
    label: str, order: int, reach: float, errors_at: Callable[[torch.Tensor], torch.Tensor], floor: float
) -> Curve:
    """Measure how errors shrink with the step length.

    Steps run over three decades below a tenth of ``reach``. The slope is fitted, for each member of the
    batch, to the steps whose errors stand clear of rounding; the smallest slope counts.

    Parameters
    ----------
    label : str
        What the errors are.
    order : int
        The slope that theory demands, at least.
    reach : float
        Length beyond which nothing is promised: the distance to the next rank, the radius of curvature.
    errors_at : callable
        Step lengths, shape ``(k,)`` in float64, to the errors of the batch, ``(k, *any)``: all steps are
        one batch.
    floor : float
        Bound on the rounding error of ``errors_at``. Steps too short to matter show what it really is, but
        no error below the bound counts: by chance these steps may have none.

    Returns
    -------
    Curve
        With the errors of the batch's worst member.
    """
    steps = [0.1 * reach * 10 ** (-_DECADES * k / (_STEPS - 1)) for k in range(_STEPS)]
    lengths = torch.tensor([*steps, *(reach * step for step in _NEGLIGIBLE)], dtype=torch.float64)
    errors = errors_at(lengths).double().reshape(len(lengths), -1)
    table, noise = errors[:_STEPS], errors[_STEPS:].amax(0)
    floors = (4 * noise).clamp(floor / _CLEAR, floor).nan_to_num(floor).tolist()
    slopes = [_slope(steps, column.tolist(), own) for column, own in zip(table.T, floors, strict=True)]
    worst = min(range(len(slopes)), key=lambda k: -math.inf if math.isnan(slopes[k]) else slopes[k])
    return Curve(label, tuple(steps), tuple(table[:, worst].tolist()), order, slopes[worst])


def along(t: torch.Tensor, x: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A point and the vectors ``t u`` as batches with one leading dimension more, ``(k, *batch, ...)``."""
    return x.expand(len(t), *x.shape).contiguous(), t.to(u).reshape(-1, *(1,) * u.ndim) * u


def _slope(steps: list[float], errors: list[float], floor: float) -> float:
    """The slope over the smallest steps or over all of them, whichever is larger.

    Two terms of an error can cancel near one step, which pulls the slopes around it down: a dip among
    the small steps spoils the first estimate, one among the large steps the second. An error of lower
    order pulls down both. Where rounding leaves only large steps, at which the next term still counts, the
    slopes between them show where they go.
    """
    if not all(math.isfinite(error) for error in errors):
        return math.nan
    clear = [(math.log(t), math.log(e)) for t, e in zip(steps, errors, strict=True) if e > _CLEAR * floor]
    if len(clear) < _FEWEST:
        return math.inf
    small = clear[-_FEWEST:]
    return max(_median_slope(small), _median_slope(clear), _limit(small))


def _median_slope(points: list[tuple[float, float]]) -> float:
    """The median of the slopes between any two points (Theil and Sen)."""
    return statistics.median(
        (e - other_e) / (t - other_t) for (t, e), (other_t, other_e) in itertools.combinations(points, 2)
    )


def _limit(points: list[tuple[float, float]]) -> float:
    """Where slopes between neighbours go that rise less and less; minus infinity for all others.

    An error ``t^p (1 - c t)`` has slopes that miss ``p`` by amounts in proportion to ``t``.
    """
    slopes = [(e - f) / (t - s) for (t, e), (s, f) in itertools.pairwise(points)]
    rises = [after - before for before, after in itertools.pairwise(slopes)]
    if min(rises) <= 0 or any(after >= before for before, after in itertools.pairwise(rises)):
        return -math.inf
    ratio = math.exp(points[1][0] - points[0][0])  # of two steps; one for all
    return statistics.median(
        slope + ratio / (1 - ratio) * rise for slope, rise in zip(slopes[1:], rises, strict=True)
    )


def has_order(curve: Curve) -> Measured:
    """The statement that the slope is at least the order, up to the margin of a measurement."""
    lack = math.nan if math.isnan(curve.slope) else max(curve.order - curve.slope, 0.0)
    return Measured(curve.label, lack, SLOPE_MARGIN, curve)
