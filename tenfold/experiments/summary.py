"""Runs of a sweep that differ in the seed alone, as one: means and standard deviations."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from tenfold.experiments.combinations import METHODS, OPTIMIZERS, name_of
from tenfold.experiments.config import TrainConfig
from tenfold.experiments.recipes import low_rank_default
from tenfold.experiments.result import Result

SIZES = ("tau", "compression", "rank", "ranks")


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
    apart : tuple of str
        Fields that tell it from settings that would look the same in tables and figures.
    """

    results: tuple[Result, ...]
    diverged: int
    config: dict[str, Any]
    apart: tuple[str, ...] = ()

    @property
    def task(self) -> tuple[str, str]:
        """Data set and network."""
        return self.config["data"], self.config["model"]

    @property
    def label(self) -> str:
        """How weights are stored and moved; on manifolds whether, how often and from when ranks adapt.

        At the end what else tells it apart.
        """
        how = [name_of(self.config["method"], self.config["optimizer"])]
        if self._fixed:
            how.append("fixed ranks")
        elif self.config["tau"] is not None:
            how.append("by tolerance")
        if self.config.get("start_compression"):
            how.append(f"from compression {self.config['start_compression']:g}")
        if self.config.get("per_layer"):
            how.append("compressed per layer")
        every = self.config["adapt_every"]
        if every and every != low_rank_default("adapt_every", self.config["optimizer"]):
            how.append(f"every {every} steps")
        if self.config.get("adapt_start"):
            how.append(f"from step {self.config['adapt_start']}")
        if self.config.get("min_rank"):
            how.append(f"ranks of at least {self.config['min_rank']}")
        if self.config.get("oversampling"):
            how.append(f"oversampling {self.config['oversampling']}")
        return ", ".join([*how, *(in_words(name, self.value(name)) for name in self.apart)])

    def value(self, name: str) -> Any:
        """A field of the configuration, also one that lines leave out where it is the default."""
        return self.config.get(name, getattr(TrainConfig, name))

    @property
    def _fixed(self) -> bool:
        return bool(self.config["adapt_every"] == 0)

    @property
    def size(self) -> str:
        """What decides on the ranks or masks."""
        names = filter(self.decides, SIZES)
        return ", ".join(in_words(name, self.config[name]) for name in names) or "–"

    def decides(self, name: str) -> bool:
        """Whether this field sets the size: the compression, the tolerance, or the ranks at the start."""
        return self.value(name) is not None and not (self._fixed and name == "tau")

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

    def seconds_per_step(self) -> float:
        """Time of training by the number of steps, over whole runs; the median of the seeds."""
        return statistics.median(result.seconds / result.last["step"] for result in self.results)

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
    """The runs, trials left out, grouped by everything but the seed.

    In the order of the methods and optimizers, and then of the lines.
    """
    groups: dict[str, list[Result]] = {}
    for result in results:
        if result.kind == "run":
            key = {name: value for name, value in result.config.items() if name != "seed"}
            groups.setdefault(repr(sorted(key.items())), []).append(result)
    found = []
    for group in groups.values():
        group.sort(key=lambda result: result.config["seed"])
        finished = tuple(result for result in group if result.finished)
        found.append(Setting(finished, len(group) - len(finished), group[0].config))
    return sorted(_told_apart(found), key=lambda setting: _place(setting.config))


def _told_apart(found: Sequence[Setting]) -> list[Setting]:
    """The settings, all of one label with what tells those of equal size apart."""
    labels: dict[tuple[tuple[str, str], str], dict[tuple[str, float], list[Setting]]] = {}
    for setting in found:
        sizes = labels.setdefault((setting.task, setting.label), {})
        sizes.setdefault((setting.size, setting.decay), []).append(setting)
    apart = {label: _differences(sizes.values()) for label, sizes in labels.items()}
    return [replace(setting, apart=apart[setting.task, setting.label]) for setting in found]


def _differences(alike: Iterable[Sequence[Setting]]) -> tuple[str, ...]:
    """Fields in which members of a list differ; the rate, which may be tuned, only if nothing else does."""
    lists = [members for members in alike if len(members) > 1]

    def different(members: Sequence[Setting], *names: str) -> int:
        return len({repr([setting.value(name) for name in names]) for setting in members})

    names = [field.name for field in fields(TrainConfig) if field.name not in ("seed", "lr")]
    found = [name for name in names if any(different(members, name) > 1 for members in lists)]
    enough = all(different(members, *found) == len(members) for members in lists)
    return tuple(found if enough else [*found, "lr"])


def in_words(name: str, value: Any) -> str:
    """A field and its value."""
    if value is None or value is False:
        return f"no {name}"
    if value is True:
        return name
    return f"{name} {value}" if isinstance(value, str) else f"{name} {value:g}"


def _place(config: dict[str, Any]) -> tuple[int, int]:
    return METHODS.index(config["method"]), OPTIMIZERS.index(config["optimizer"])


def _seconds(result: Result, epoch: int) -> float:
    steps = [0, *(record["step"] for record in result.curve)]
    return sum(result.curve[i]["seconds_per_step"] * (steps[i + 1] - steps[i]) for i in range(epoch + 1))
