"""Matplotlib figures as files, drawn without a screen."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tenfold.atomic import replacing

DOTS_PER_INCH = 120


def write_figure(figure: Figure, path: Path) -> None:
    """Write `figure` to the PNG file `path` in one step, and let go of it."""
    with replacing(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
    figure.clear()
