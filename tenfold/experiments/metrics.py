"""What is measured after every epoch, one line of JSON each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tenfold.atomic import write_text
from tenfold.untrusted import values
from tenfold.untrusted.text import parse_json, read_text

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

    @classmethod
    def from_dict(cls, where: str, saved: Any) -> EpochRecord:
        """Inverse of :meth:`to_dict`; `where` names the place in the message.

        Raises
        ------
        ValueError
            `saved` has not exactly the fields of a record, those added later aside, or one of them is of
            another type or out of range.
        """
        complete = _ADDED_LATER | saved if isinstance(saved, dict) else saved
        try:
            _RECORD("the record", complete)
        except ValueError as error:
            message = f"{where} is not an epoch's record of this version of tenfold: {error}"
            raise ValueError(message) from error
        return cls(**complete)


_COUNT, _POSITIVE = values.whole(), values.whole(1)
_MOST_LAYERS = 1000


def check_ranks(where: str, value: Any) -> None:
    """Refuse what are not the ranks of some layers; figures have a panel for each of them."""
    values.mapping(values.listing(_POSITIVE, 1))(where, value)
    if len(value) > _MOST_LAYERS:
        raise ValueError(f"{where} has {len(value)} layers, more than the {_MOST_LAYERS} that are read")


_RECORD = values.record(
    {
        **dict.fromkeys(("epoch", "step"), _POSITIVE),
        **dict.fromkeys(("parameters", "dense_parameters", "skipped", "rollbacks"), _COUNT),
        **dict.fromkeys(("train_loss", "test_loss"), values.number),
        "test_accuracy": values.fraction,
        **{f"compression_{part}": values.finite for part in ("convolutions", "factored", "network")},
        **dict.fromkeys(("seconds_per_step", "lr"), values.finite),
        "ranks": check_ranks,
        "peak_memory": values.optional(_COUNT),
        "losses": values.listing(values.number),
    }
)


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
    records = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        where = f"{path}, line {number},"
        try:
            saved = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{where} is not JSON: {error}") from error
        records.append(EpochRecord.from_dict(where, saved))
    return records
