"""Pictures of runs, drawn without a screen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tenfold.experiments.figure_file import DOTS_PER_INCH, write_figure
from tenfold.experiments.runs import Run, shown

_MODES = {2: ("output", "input"), 4: ("output channels", "input channels", "rows", "columns")}


def plot_ranks(path: Path, history: Sequence[tuple[int, dict[str, list[int]]]], last_step: int) -> None:
    """Draw the rank of every layer over the steps, one panel per layer and one line per mode.

    Parameters
    ----------
    path : Path
        PNG file to write.
    history : sequence of (int, dict)
        Step and ranks of every layer, at the start and whenever one changed; at least one layer.
    last_step : int
        Where the lines end.
    """
    names = list(history[0][1])
    columns = min(len(names), 4)
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(0.8 + 3.2 * columns, 0.6 + 2.4 * rows), dpi=DOTS_PER_INCH, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    for panel, name in zip(panels, names, strict=False):
        _draw_layer(panel, name, history, last_step)
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    figure.supxlabel("step")
    figure.supylabel("rank")
    write_figure(figure, path)


def plot_comparison(path: Path, runs: Sequence[Run]) -> None:
    """Draw test accuracy over the compression of the whole network: a point per run, and the way to it.

    Parameters
    ----------
    path : Path
        PNG file to write.
    runs : sequence of Run
        At least one.
    """
    figure = Figure(figsize=(7, 4.5), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    for run in runs:
        ways = [100 * record.compression_network for record in run.records]
        accuracies = [100 * record.test_accuracy for record in run.records]
        (line,) = axes.plot(ways, accuracies, linewidth=1, alpha=0.4, marker=".", markersize=3)
        label = f"{run.config.method}, {shown(run.folder)}".replace("$", r"\$")  # or it begins a formula
        axes.plot(ways[-1:], accuracies[-1:], "o", markersize=8, color=line.get_color(), label=label)
    finals = [100 * run.last.test_accuracy for run in runs]
    margin = max(1.0, max(finals) - min(finals))
    axes.set_ylim(min(finals) - margin, min(100.5, max(finals) + margin))
    axes.set_xlabel("compression of the whole network, %")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(f"{runs[0].config.data}: last epoch (dot), earlier epochs (line)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    write_figure(figure, path)


def _draw_layer(
    panel: Axes, name: str, history: Sequence[tuple[int, dict[str, list[int]]]], last_step: int
) -> None:
    steps = [step for step, _ in history] + [last_step]
    order = len(history[0][1][name])
    labels = _MODES.get(order, tuple(f"mode {i + 1}" for i in range(order)))
    for mode, label in enumerate(labels):
        line = [ranks[name][mode] for _, ranks in history]
        style = ("-", "--", ":", "-.")[mode % 4]  # the two ranks of a matrix are equal: both must show
        panel.step(steps, [*line, line[-1]], style, where="post", label=label)
    panel.set_title(name, fontsize="medium")
    panel.set_ylim(bottom=0)
    panel.yaxis.set_major_locator(MaxNLocator(integer=True))
    panel.grid(alpha=0.3)
    panel.legend(fontsize="x-small")
