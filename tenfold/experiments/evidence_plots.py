"""Figures about a sweep, drawn without a screen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tenfold.experiments.figure_file import DOTS_PER_INCH, write_figure
from tenfold.experiments.published import published_points
from tenfold.experiments.summary import Setting

_LINES = {"loose": "--", "dense": ":", "prune": "-."}
_PUBLISHED_MARKERS = {"full": "*", "tdlrt": "D", "tucker": "s", "matrix": "^", "cp": "v"}


def plot_accuracy(path: Path, group: Sequence[Setting]) -> None:
    """Mean test accuracy over compression, with standard deviations over the seeds; published points hollow.

    Lines are full on manifolds, dashed for loose factors, dash-dotted for pruning, dotted for dense networks.
    Compression is that of the convolutions where there are published points, else of the factored layers.
    """
    figure, axes = _single()
    data, model = group[0].task
    published = published_points(model, data)
    field = "compression_convolutions" if published else "compression_factored"
    for label, members in _by_label(group).items():
        style = _style(group, members)
        if members[0].config["method"] == "dense":
            axes.axhline(100 * members[0].mean("test_accuracy"), linewidth=1, label=label, **style)
            continue
        members.sort(key=lambda setting: setting.mean(field))
        x = [100 * setting.mean(field) for setting in members]
        y = [100 * setting.mean("test_accuracy") for setting in members]
        bars = [100 * (setting.deviation("test_accuracy") or 0.0) for setting in members]
        widths = [100 * (setting.deviation(field) or 0.0) for setting in members]
        axes.errorbar(x, y, bars, widths, label=label, marker="o", markersize=4, capsize=2, **style)
    for method, marker in _PUBLISHED_MARKERS.items():
        points = [(p.compression, p.accuracy) for p in published if p.method == method]
        if points:
            label = f"published, {method}"
            axes.plot(*zip(*points, strict=True), marker, color="grey", markerfacecolor="none", label=label)
    _finish(axes, f"compression of the {_words(field)}, %", "test accuracy, %")
    write_figure(figure, path)


def plot_variance(path: Path, group: Sequence[Setting]) -> None:
    """Standard deviation of the test accuracy over the seeds, over compression."""
    figure, axes = _single()
    for label, members in _by_label(group).items():
        points = sorted(
            (100 * setting.mean("compression_factored"), 100 * spread)
            for setting in members
            if (spread := setting.deviation("test_accuracy")) is not None
        )
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="o", **_style(group, members))
    _finish(axes, "compression of the factored layers, %", "standard deviation over the seeds, points")
    write_figure(figure, path)


def plot_rank_evolution(path: Path, group: Sequence[Setting]) -> None:
    """Largest rank of every layer over the steps, for every setting on manifolds, at its first seed."""
    adaptive = [s for s in group if s.config["method"] == "tucker"]
    layers = list(dict.fromkeys(layer for s in adaptive for layer in s.results[0].ranks[0][1]))
    columns = min(len(layers), 4)
    rows = math.ceil(len(layers) / columns)
    size = (1 + 3.4 * columns, 1.4 + 2.6 * rows)
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    shades = matplotlib.colormaps["viridis"]
    for index, setting in enumerate(adaptive):
        result = setting.results[0]
        end = result.last["step"]
        for panel, layer in zip(panels, layers, strict=False):
            if layer not in result.ranks[0][1]:
                continue
            steps = [step for step, _ in result.ranks] + [end]
            values = [max(ranks[layer]) for _, ranks in result.ranks]
            label = f"{setting.label}, {setting.size}"
            colour = shades(index / max(1, len(adaptive) - 1))
            panel.step(steps, [*values, values[-1]], where="post", label=label, color=colour)
            panel.set_title(layer, fontsize="medium")
    for panel in panels[len(layers) :]:
        panel.set_visible(False)
    for panel in panels[: len(layers)]:
        panel.set_xlabel("step")
        panel.tick_params(labelbottom=True)
        panel.set_ylim(bottom=0)  # last: it keeps the upper end as it is then
    figure.supylabel("largest rank")
    _legend_below(figure)
    write_figure(figure, path)


def plot_robustness(path: Path, group: Sequence[Setting]) -> None:
    """Training loss over the steps, one panel for every decay of the initial singular values."""
    decays = sorted({setting.decay for setting in group})
    size = (1 + 3.6 * len(decays), 4.4)
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
    panels = figure.subplots(1, len(decays), squeeze=False, sharey=True).flatten()
    labels = dict.fromkeys(f"{setting.label}, {setting.size}" for setting in group)
    colours = {label: matplotlib.colormaps["tab20"](i % 20) for i, label in enumerate(labels)}
    for panel, decay in zip(panels, decays, strict=True):
        for setting in group:
            if setting.decay == decay:
                label = f"{setting.label}, {setting.size}"
                steps, losses = zip(*setting.mean_losses(), strict=True)
                panel.plot(steps, losses, label=label, color=colours[label], linewidth=1)
        panel.set_yscale("log")
        panel.set_title("no decay" if decay == 1 else f"decay {decay:g}", fontsize="medium")
        panel.grid(alpha=0.3)
    for panel in panels:
        panel.set_xlabel("step")
    figure.supylabel("training loss")
    _legend_below(figure)
    write_figure(figure, path)


def plot_time(path: Path, group: Sequence[Setting]) -> None:
    """Mean test accuracy over seconds of training; of every label the setting of middle compression."""
    figure, axes = _single()
    for label, members in _by_label(group).items():
        seconds, accuracies = zip(*_middle(members).accuracy_over_time(), strict=True)
        name = f"{label}, {_middle(members).size}"
        percent = [100 * a for a in accuracies]
        axes.plot(seconds, percent, label=name, marker="o", **_style(group, members))
    _finish(axes, "seconds of training", "test accuracy, %")
    write_figure(figure, path)


def plot_memory(path: Path, group: Sequence[Setting]) -> None:
    """Mean peak memory of the process; of every label the setting of middle compression."""
    figure, axes = _single()
    for label, members in _by_label(group).items():
        setting = _middle(members)
        axes.barh(
            f"{label}, {setting.size}",
            setting.mean_of(lambda result: (result.peak_memory or 0) / 2**20),
            color=_colour(group, label),
        )
    axes.invert_yaxis()
    axes.tick_params(labelsize="x-small")
    axes.set_xlabel("peak memory of the process, MiB")
    write_figure(figure, path)


def _single() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, 5), dpi=DOTS_PER_INCH, layout="constrained")
    return figure, figure.subplots()


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.01, 0.5))


def _legend_below(figure: Figure) -> None:
    """One entry for every line of the panels, of which each may have others."""
    drawn = [axes.get_legend_handles_labels() for axes in figure.axes]
    lines = {
        label: handle for handles, labels in drawn for handle, label in zip(handles, labels, strict=True)
    }
    figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=3, fontsize="x-small")


def _by_label(group: Sequence[Setting]) -> dict[str, list[Setting]]:
    labels: dict[str, list[Setting]] = {}
    for setting in group:
        labels.setdefault(setting.label, []).append(setting)
    return labels


def _colour(group: Sequence[Setting], label: str) -> tuple[float, ...]:
    return matplotlib.colormaps["tab20"](list(_by_label(group)).index(label) % 20)


def _style(group: Sequence[Setting], members: Sequence[Setting]) -> dict[str, Any]:
    """Colour and kind of the line of settings with the same label."""
    kind = members[0].config["method"].partition("-")[0]
    return {"color": _colour(group, members[0].label), "linestyle": _LINES.get(kind, "-")}


def _middle(members: Sequence[Setting]) -> Setting:
    ordered = sorted(members, key=lambda setting: setting.mean("compression_factored"))
    return ordered[len(ordered) // 2]


def _words(field: str) -> str:
    return "convolutions" if field == "compression_convolutions" else "factored layers"
