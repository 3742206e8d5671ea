"""Slope plots of a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tenfold.testing.outcome import Curve
from tenfold.testing.report import Report

__all__ = ["plot_slopes"]


def plot_slopes(report: Report, path: Path | str) -> None:
    """Draw every measured curve of a report beside the slope that theory demands.

    Parameters
    ----------
    report : Report
        From :func:`~tenfold.testing.check_manifold`.
    path : path-like
        The image to write; its suffix chooses the format.

    Raises
    ------
    ValueError
        If the report has no curve, or matplotlib does not know the suffix.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = [(result.id, curve) for result in report for curve in result.curves]
    if not curves:
        raise ValueError(f"the report on {report.subject} has no slopes to plot")
    columns = min(len(curves), 3)
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(report.subject)
    for number, (id, curve) in enumerate(curves, start=1):
        axes = figure.add_subplot(rows, columns, number)
        _draw(axes, id, curve)
    figure.savefig(path)


def _draw(axes: Any, id: str, curve: Curve) -> None:
    axes.set_title(f"{id}  {curve.label.replace('|', '‖')}", fontsize="medium")
    axes.set_xlabel("step t")
    positive = [(t, e) for t, e in zip(curve.steps, curve.errors, strict=True) if e > 0]
    if not positive:
        axes.text(0.5, 0.5, "exact", transform=axes.transAxes, ha="center")
        return
    steps, errors = zip(*positive, strict=True)
    axes.loglog(steps, errors, "o-", markersize=3, label=f"measured: slope {curve.slope:.2f}")
    anchor, size = steps[0], errors[0]
    axes.loglog(
        steps, [size * (t / anchor) ** curve.order for t in steps], "--", label=f"slope {curve.order}"
    )
    axes.legend(fontsize="small")
