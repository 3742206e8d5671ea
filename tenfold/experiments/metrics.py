"""What is measured after every epoch, one line of JSON each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tenfold.atomic import write_text

LOSS_WINDOW = 10
"""Steps whose losses are averaged in a record."""

_ADDED_LATER: dict[str, Any] = {
    "losses": [],
    "skipped": 0,
    "rollbacks": 0,
}  # fields that records of earlier versions do not have


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of one run.

    Parameters
    ----------
    epoch, step : int
        Epochs and optimizer steps done.
    train_loss : float
        Mean cross entropy over the epoch's batches, in nats, each at the weights of its step; of the steps
        that were taken, NaN if none was.
    test_loss, test_accuracy : float
        Mean cross entropy in nats and fraction of right answers over the test split, after the epoch.
    parameters, dense_parameters : int
        Numbers that the network stores, and that the same network with dense weights stores.
    compression_convolutions, compression_factored, compression_network : float
        1 − stored / dense over the weights of the convolutions, the weights of the factored layers, and all
        parameters.
    ranks : dict of str to list of int
        Rank of every factored layer after the epoch.
    seconds_per_step : float
        Wall-clock time of the epoch's training, divided by its steps.
    lr : float
        Learning rate of the last step.
    peak_memory : int, optional
        Largest memory use of the process so far, in bytes.
    losses : list of float
        Mean cross entropy over every :data:`LOSS_WINDOW` steps of the epoch in turn; the last window may be
        shorter.
    skipped : int
        Steps of the epoch that were not finite and left out.
    rollbacks : int
        Returns to a checkpoint in the epoch.
    """

    epoch: int
    step: int
    train_loss: float
    test_loss: float
    test_accuracy: float
    parameters: int
    dense_parameters: int
    compression_convolutions: float
    compression_factored: float
    compression_network: float
    ranks: dict[str, list[int]]
    seconds_per_step: float
    lr: float
    peak_memory: int | None
    losses: list[float] = field(default_factory=list)
    skipped: int = 0
    rollbacks: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python data."""
        return asdict(self)


def write_records(path: Path, records: Sequence[EpochRecord]) -> None:
    """Write one line per epoch, replacing the file in one step."""
    write_text(path, "".join(json.dumps(record.to_dict()) + "\n" for record in records))


def read_records(path: Path) -> list[EpochRecord]:
    """Read what :func:`write_records` wrote.

    Raises
    ------
    ValueError
        A line is not a record; the message names the file and the line.
    OSError
        The file cannot be read.
    """
    names = {field.name for field in fields(EpochRecord)}
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}, is not JSON: {error}") from error
        if not isinstance(values, dict) or set(_ADDED_LATER | values) != names:
            raise ValueError(f"{path}, line {number}, is not an epoch's record of this version of tenfold")
        records.append(EpochRecord(**values))
    return records
