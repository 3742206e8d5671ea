"""Runs of a sweep that differ in the seed alone, as one: means and standard deviations."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tenfold.experiments.combinations import METHODS, OPTIMIZERS, name_of
from tenfold.experiments.config import low_rank_default
from tenfold.experiments.result import Result

_SIZES = ("tau", "compression", "rank")


@dataclass(frozen=True)
class Setting:
    """All runs of one setting.

    Parameters
    ----------
    results : tuple of Result
        The runs that finished, by seed.
    diverged : int
        Number of runs that did not.
    config : dict
        Of the first run.
    """

    results: tuple[Result, ...]
    diverged: int
    config: dict[str, Any]

    @property
    def task(self) -> tuple[str, str]:
        """Data set and network."""
        return self.config["data"], self.config["model"]

    @property
    def label(self) -> str:
        """How weights are stored and moved; on manifolds whether, how often and from when ranks adapt."""
        how = [name_of(self.config["method"], self.config["optimizer"])]
        if self._fixed:
            how.append("fixed ranks")
        elif self.config["tau"] is not None:
            how.append("by tolerance")
        if self.config.get("start_compression"):
            how.append(f"from compression {self.config['start_compression']:g}")
        every = self.config["adapt_every"]
        if every and every != low_rank_default("adapt_every", self.config["optimizer"]):
            how.append(f"every {every} steps")
        if self.config.get("adapt_start"):
            how.append(f"from step {self.config['adapt_start']}")
        if self.config.get("oversampling"):
            how.append(f"oversampling {self.config['oversampling']}")
        return ", ".join(how)

    @property
    def _fixed(self) -> bool:
        return bool(self.config["adapt_every"] == 0)

    @property
    def size(self) -> str:
        """What decides on the ranks or masks."""
        names = filter(self.decides, _SIZES)
        return ", ".join(f"{name} {self.config[name]:g}" for name in names) or "–"

    def decides(self, name: str) -> bool:
        """Whether this field sets the size: the compression, the tolerance, or the ranks at the start."""
        return self.config[name] is not None and not (self._fixed and name == "tau")

    @property
    def decay(self) -> float:
        """Ratio of the singular values at the start, 1 where none is asked for."""
        return float(self.config["decay"] or 1.0)

    def mean(self, field: str) -> float:
        """Mean of a field of the last epoch's record over the seeds."""
        return statistics.fmean(result.last[field] for result in self.results)

    def deviation(self, field: str) -> float | None:
        """Sample standard deviation over the seeds; None for less than two."""
        if len(self.results) < 2:
            return None
        return statistics.stdev(result.last[field] for result in self.results)

    def mean_of(self, value: Callable[[Result], float]) -> float:
        """Mean of something else over the seeds."""
        return statistics.fmean(value(result) for result in self.results)

    def mean_losses(self) -> list[tuple[int, float]]:
        """Steps and training losses, averaged over the seeds."""
        curves = [result.losses for result in self.results]
        return [
            (int(points[0][0]), statistics.fmean(loss for _, loss in points))
            for points in zip(*curves, strict=False)
        ]

    def accuracy_over_time(self) -> list[tuple[float, float]]:
        """Seconds of training and test accuracy after every epoch, averaged over the seeds."""
        points = []
        for epoch in range(min(len(result.curve) for result in self.results)):
            seconds = statistics.fmean(_seconds(result, epoch) for result in self.results)
            accuracy = statistics.fmean(result.curve[epoch]["test_accuracy"] for result in self.results)
            points.append((seconds, accuracy))
        return points


def settings(results: Sequence[Result]) -> list[Setting]:
    """The runs, trials left out, grouped by everything but the seed and the chosen learning rate.

    In the order of the methods and optimizers, and then of the lines.
    """
    groups: dict[str, list[Result]] = {}
    for result in results:
        if result.kind == "run":
            key = {name: value for name, value in result.config.items() if name not in ("seed", "lr")}
            groups.setdefault(repr(sorted(key.items())), []).append(result)
    found = []
    for group in groups.values():
        group.sort(key=lambda result: result.config["seed"])
        finished = tuple(result for result in group if result.finished)
        found.append(Setting(finished, len(group) - len(finished), group[0].config))
    return sorted(found, key=lambda setting: _place(setting.config))


def _place(config: dict[str, Any]) -> tuple[int, int]:
    return METHODS.index(config["method"]), OPTIMIZERS.index(config["optimizer"])


def _seconds(result: Result, epoch: int) -> float:
    steps = [0, *(record["step"] for record in result.curve)]
    return sum(result.curve[i]["seconds_per_step"] * (steps[i + 1] - steps[i]) for i in range(epoch + 1))
