"""The result of one run of a sweep: a line of JSON that tables and figures are made from."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tenfold.experiments.config import TrainConfig
from tenfold.experiments.grid import run_id
from tenfold.experiments.machine import machine, versions
from tenfold.experiments.metrics import LOSS_WINDOW, EpochRecord, check_ranks
from tenfold.untrusted import values
from tenfold.untrusted.text import parse_json, read_text

_POINTS = 100  # of the loss curve
_RANKS = 50  # of the rank history
_OF_A_CURVE = (
    *("epoch", "step", "train_loss", "test_loss", "test_accuracy", "parameters"),
    *("compression_convolutions", "compression_factored", "compression_network", "seconds_per_step", "lr"),
)


@dataclass(frozen=True)
class Result:
    """What one run gave.

    Parameters
    ----------
    id : str
        :func:`~tenfold.experiments.grid.run_id` of the run.
    sweep : str
        Name of the sweep.
    kind : {"run", "trial"}
        A trial is a short run to choose a learning rate by.
    status : {"finished", "diverged"}
        Whether the loss stayed finite, that of the test set included after the last epoch.
    config : dict
        :meth:`TrainConfig.identity <tenfold.experiments.config.TrainConfig.identity>` of the run.
    tuning : dict, optional
        Of a run whose learning rate was chosen: ``rates`` (rate and training loss of each trial, None where
        it diverged), ``epochs`` and ``seed`` of the trials.
    curve : list of dict
        One for every finished epoch, with fields of
        :class:`~tenfold.experiments.metrics.EpochRecord`.
    losses : list of [int, float]
        Step, and mean training loss over the steps since the point before.
    ranks : list of [int, dict]
        Step, and rank of every factored layer from there on.
    peak_memory : int, optional
        Of the process, in bytes.
    versions, machine : dict
        See :mod:`~tenfold.experiments.machine`.
    """

    id: str
    sweep: str
    kind: str
    status: str
    config: dict[str, Any]
    tuning: dict[str, Any] | None
    curve: list[dict[str, Any]]
    losses: list[list[float]]
    ranks: list[list[Any]]
    peak_memory: int | None
    versions: dict[str, str]
    machine: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.status == "finished"

    @property
    def last(self) -> dict[str, Any]:
        """What was measured after the last epoch."""
        return self.curve[-1]

    @property
    def seconds(self) -> float:
        """Time of training, without evaluation and start."""
        steps = [0, *(epoch["step"] for epoch in self.curve)]
        return sum(
            epoch["seconds_per_step"] * (epoch["step"] - before)
            for epoch, before in zip(self.curve, steps, strict=False)
        )

    @property
    def final_loss(self) -> float | None:
        """Mean of the last quarter of `losses`, each point counted once; None if the run diverged."""
        if not self.finished:
            return None
        values = [value for _, value in self.losses]
        tail = values[-max(1, len(values) // 4) :]
        return sum(tail) / len(tail)

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        sweep: str,
        tuning: dict[str, Any] | None,
        kind: str,
        records: Sequence[EpochRecord],
        rank_history: Sequence[tuple[int, dict[str, list[int]]]],
        finished: bool,
    ) -> Result:
        """Collect what a run left; `finished` says that the training came to its end."""
        finished = finished and all(math.isfinite(record.test_loss) for record in records[-1:])
        peaks = [record.peak_memory for record in records if record.peak_memory is not None]
        return cls(
            id=run_id(config),
            sweep=sweep,
            kind=kind,
            status="finished" if finished else "diverged",
            config=config.identity(),
            tuning=tuning,
            curve=[{k: _brief(getattr(record, k)) for k in _OF_A_CURVE} for record in records],
            losses=_losses(records),
            ranks=[[step, ranks] for step, ranks in _thinned(rank_history, _RANKS)],
            peak_memory=max(peaks, default=None),
            versions=versions(),
            machine=machine(),
        )

    def to_line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":")) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Result:
        """Inverse of :meth:`to_line`.

        Raises
        ------
        ValueError
            The line is not a result of this version of tenfold.
        """
        saved = parse_json(line)
        try:
            _RESULT("the result", saved)
            run = TrainConfig.from_dict({**saved["config"], "device": "auto", "data_dir": None})
            if saved["status"] == "finished" and not (saved["curve"] and saved["losses"]):
                raise ValueError("the result of a finished run has no epoch or no loss")
            layers = {tuple(ranks) for _, ranks in saved["ranks"]}
            if len(layers) > 1 or (
                run.method == "tucker" and saved["status"] == "finished" and not any(layers)
            ):
                raise ValueError("the ranks are not those of the same layers throughout")
        except (ValueError, TypeError) as error:
            raise ValueError(f"this is not a result of this version of tenfold: {error}") from error
        return cls(**{**saved, "config": run.identity()})


def read_results(path: Path) -> list[Result]:
    """Read a file of results, leaving out an unfinished last line.

    Raises
    ------
    ValueError
        A line is not a result; the message names the file and the line.
    OSError
        The file cannot be read.
    """
    results = []
    lines = read_text(path).splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line.endswith("\n"):
            break  # killed while writing it
        try:
            results.append(Result.from_line(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return results


def append_result(path: Path, result: Result) -> None:
    """Write `result` as the last line of a file, created if need be.

    Raises
    ------
    OSError
        The file cannot be written; it may end in an unfinished line then.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(result.to_line())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # of a full disk it names no file


_RESULT = values.record(
    {
        **dict.fromkeys(("id", "sweep"), values.text),
        "kind": values.one_of("run", "trial"),
        "status": values.one_of("finished", "diverged"),
        "config": values.mapping(values.plain),
        "tuning": values.optional(values.mapping(values.anything)),
        "curve": values.listing(
            values.record(
                {
                    **dict.fromkeys(_OF_A_CURVE, values.number),
                    **dict.fromkeys(("epoch", "step", "parameters"), values.whole(1)),
                    "test_accuracy": values.fraction,
                }
            )
        ),
        "losses": values.listing(values.row(values.whole(), values.number)),
        "ranks": values.listing(values.row(values.whole(), check_ranks)),
        "peak_memory": values.optional(values.whole()),
        "versions": values.record(dict.fromkeys(("torch", "tenfold"), values.text), extra=values.text),
        "machine": values.record(
            {
                **dict.fromkeys(("cores", "threads"), values.optional(values.whole())),
                "processor": values.text,
                "gpu": values.optional(values.text),
            },
            extra=values.plain,
        ),
    }
)


def _losses(records: Sequence[EpochRecord]) -> list[list[float]]:
    points: list[tuple[int, float]] = []
    start = 0
    for record in records:
        points += [
            (min(start + (i + 1) * LOSS_WINDOW, record.step), loss) for i, loss in enumerate(record.losses)
        ]
        start = record.step
    group = -(-len(points) // _POINTS) or 1
    means = []
    for first in range(0, len(points), group):
        chunk = points[first : first + group]
        means.append([chunk[-1][0], _brief(sum(loss for _, loss in chunk) / len(chunk))])
    return means


def _thinned(history: Sequence[tuple[int, Any]], most: int) -> list[tuple[int, Any]]:
    if len(history) <= most:
        return list(history)
    return [history[round(i * (len(history) - 1) / (most - 1))] for i in range(most)]


def _brief(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
