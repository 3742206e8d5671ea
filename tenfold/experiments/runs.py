"""The folder of a run: what its files are called, and reading a finished run back."""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import dataclass
from pathlib import Path

from tenfold.atomic import write_text
from tenfold.experiments.config import TrainConfig
from tenfold.experiments.metrics import EpochRecord, read_records
from tenfold.untrusted.text import SMALL_FILE, parse_json, read_text

CHECKPOINT = "checkpoint.pt"
CONFIG = "config.json"
METRICS = "metrics.jsonl"
RANKS_PLOT = "ranks.png"
REPORT = "report.md"


@dataclass(frozen=True)
class Run:
    """A run with at least one finished epoch.

    Parameters
    ----------
    folder : Path
        Where its files are.
    config : TrainConfig
        What it was asked to do.
    records : list of EpochRecord
        What was measured, epoch by epoch.
    """

    folder: Path
    config: TrainConfig
    records: list[EpochRecord]

    @property
    def last(self) -> EpochRecord:
        """The record of the last epoch."""
        return self.records[-1]

    @property
    def seconds_per_step(self) -> float:
        """Median over the epochs of the time of a training step."""
        return statistics.median(record.seconds_per_step for record in self.records)

    @property
    def peak_memory(self) -> int | None:
        """Largest memory use over the epochs, in bytes."""
        return max((r.peak_memory for r in self.records if r.peak_memory is not None), default=None)


def shown(path: str | Path) -> str:
    """A path as text that can be written; names of files need not be UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


def write_config(folder: Path, config: TrainConfig) -> None:
    """Write what a run is to ``config.json`` in its folder."""
    write_text(folder / CONFIG, json.dumps(config.to_dict(), indent=2) + "\n")


def read_config(folder: Path) -> TrainConfig:
    """Read what :func:`write_config` wrote.

    Raises
    ------
    FileNotFoundError
        The folder holds no run.
    ValueError
        The file is damaged, or of another version.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no run: there is no {CONFIG} in it")
    text = read_text(path, SMALL_FILE)
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} does not describe a run")
    try:
        return TrainConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def read_run(folder: Path) -> Run:
    """Read a run back from its folder.

    Raises
    ------
    FileNotFoundError
        The folder holds no run.
    ValueError
        A file is damaged, or no epoch is finished yet.
    """
    config = read_config(folder)
    path = folder / METRICS
    records = read_records(path) if path.is_file() else []
    if not records:
        raise ValueError(f"the run in {folder} has not finished an epoch yet")
    return Run(folder, config, records)
