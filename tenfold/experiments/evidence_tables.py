"""Tables about a sweep."""

from __future__ import annotations

from collections.abc import Sequence

from tenfold.experiments.report import Table, percent
from tenfold.experiments.summary import SIZES, Setting, in_words

_NOTHING = "–"
_BEHIND = 0.01  # how far behind the best mean accuracy the goal of the time to accuracy is


def accuracy_table(group: Sequence[Setting]) -> Table:
    """One row per setting: accuracy, compression, size, time and memory, means over the seeds.

    The time of a step is that of all epochs, evaluation and start left out: the last alone has fewer
    numbers to move where a budget falls. It is the median over the seeds, which one slow run does not move.
    """
    rows = [
        [
            *("weights, optimizer", "size", "lr", "seeds", "test accuracy", "compression, factored"),
            *("compression, convolutions", "parameters", "time per step, whole run, median of seeds"),
            *("peak memory", "diverged"),
        ]
    ]
    for setting in group:
        if not setting.results:
            rows.append([setting.label, setting.size, *[_NOTHING] * 8, str(setting.diverged)])
            continue
        rows.append(
            [
                setting.label,
                setting.size,
                f"{setting.config['lr']:g}",
                str(len(setting.results)),
                f"{_with_deviation(setting)} %",
                percent(setting.mean("compression_factored")),
                percent(setting.mean("compression_convolutions")),
                f"{setting.mean('parameters'):,.0f}",
                f"{1000 * setting.seconds_per_step():.1f} ms",
                _memory(setting),
                str(setting.diverged),
            ]
        )
    return rows


def size_table(group: Sequence[Setting], decides: str) -> Table:
    """One row for each way to train and start, one column for each size: accuracy ± deviation (compression).

    Parameters
    ----------
    group : sequence of Setting
        Of one network on one data set.
    decides : {"compression", "tau", "ranks"}
        What sets the size of the settings that are shown.

    Returns
    -------
    list of list of str
        Without a deviation where there is one seed. Only the header where nothing is decided so.
    """
    sized = [s for s in group if s.results and s.decides(decides)]
    sizes = sorted({setting.config[decides] for setting in sized})
    rows = [["weights, optimizer", "seeds", *(in_words(decides, size) for size in sizes)]]
    several = [name for name in SIZES if name != decides and len({s.value(name) for s in sized}) > 1]
    decays = len({setting.decay for setting in sized}) > 1

    def name_of(setting: Setting) -> str:
        starts = [in_words(name, setting.config[name]) for name in several if setting.decides(name)]
        return ", ".join([setting.label, *starts, *[f"decay {setting.decay:g}"] * decays])

    for label in dict.fromkeys(map(name_of, sized)):
        members = {setting.config[decides]: setting for setting in sized if name_of(setting) == label}
        seeds = sorted({len(setting.results) for setting in members.values()})
        rows.append(
            [
                label,
                " to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1])))),
                *(_accuracy_at_size(members[size]) if size in members else _NOTHING for size in sizes),
            ]
        )
    return rows


def time_table(group: Sequence[Setting]) -> Table:
    """Seconds of training until the mean accuracy is within a point of the best one of all settings."""
    finished = [setting for setting in group if setting.results]
    goal = max((setting.mean("test_accuracy") for setting in finished), default=0.0) - _BEHIND
    rows = [["weights, optimizer", "size", f"seconds to {percent(goal)}", "seconds in all"]]
    for setting in finished:
        curve = setting.accuracy_over_time()
        reached = next((f"{seconds:.0f}" for seconds, accuracy in curve if accuracy >= goal), "not reached")
        rows.append([setting.label, setting.size, reached, f"{curve[-1][0]:.0f}"])
    return rows


def robustness_table(group: Sequence[Setting]) -> Table:
    """For every decay: steps to the final loss of the best run on loose factors."""
    rows = [["decay", "weights, optimizer", "size", "lr", "seeds", "final loss", "steps to goal", "goal"]]
    for decay in sorted({setting.decay for setting in group}):
        same = [setting for setting in group if setting.decay == decay and setting.results]
        loose = [setting for setting in same if setting.config["method"].startswith("loose-")]
        goal = min((_final(setting) for setting in loose), default=None)
        for setting in same:
            reached = _steps_to(setting, goal) if goal is not None else None
            rows.append(
                [
                    f"{decay:g}",
                    setting.label,
                    setting.size,
                    f"{setting.config['lr']:g}",
                    str(len(setting.results)),
                    f"{_final(setting):.4f}",
                    _NOTHING if goal is None else "not reached" if reached is None else str(reached),
                    _NOTHING if goal is None else f"{goal:.4f}",
                ]
            )
    return rows


def _final(setting: Setting) -> float:
    return setting.mean_of(lambda result: result.final_loss or 0.0)


def _steps_to(setting: Setting, goal: float) -> int | None:
    """The first step from which the mean loss, averaged over five points of the curve, is at the goal."""
    curve = setting.mean_losses()
    for last in range(len(curve)):
        window = curve[max(0, last - 4) : last + 1]
        if sum(loss for _, loss in window) / len(window) <= goal:
            return window[len(window) // 2][0]
    return None


def _accuracy_at_size(setting: Setting) -> str:
    return f"{_with_deviation(setting)} ({100 * setting.mean('compression_factored'):.1f})"


def _with_deviation(setting: Setting) -> str:
    spread = setting.deviation("test_accuracy")
    mean = f"{100 * setting.mean('test_accuracy'):.2f}"
    return mean if spread is None else f"{mean} ± {100 * spread:.2f}"


def _memory(setting: Setting) -> str:
    peaks = [result.peak_memory for result in setting.results if result.peak_memory is not None]
    return f"{sum(peaks) / len(peaks) / 2**20:,.0f} MiB" if peaks else "unknown"
