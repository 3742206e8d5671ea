"""Somebody who watches a training run."""

from __future__ import annotations

from dataclasses import dataclass

from tenfold.experiments.compression import Compression
from tenfold.experiments.config import TrainConfig
from tenfold.experiments.metrics import EpochRecord


@dataclass(frozen=True)
class Step:
    """What is known after an optimizer step.

    Parameters
    ----------
    epoch, step : int
        Epoch, from 1, and step within it, from 1.
    loss : float
        Cross entropy of the batch, in nats.
    ranks : dict of str to list of int
        Rank of every factored layer.
    compression : Compression
        At these ranks.
    """

    epoch: int
    step: int
    loss: float
    ranks: dict[str, list[int]]
    compression: Compression


class Observer:
    """Receives what happens in a run; this one looks away. Subclasses override what they care for."""

    def started(self, config: TrainConfig, steps_per_epoch: int, epochs_done: int) -> None:
        """Training is about to begin, or to go on after `epochs_done` epochs."""

    def stepped(self, step: Step) -> None:
        """An optimizer step is done. Called after every step on the CPU, after some of them elsewhere."""

    def epoch_finished(self, record: EpochRecord) -> None:
        """An epoch is done, and its checkpoint is on the disk."""

    def noted(self, message: str) -> None:
        """Something a person should know, one line."""
