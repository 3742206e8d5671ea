"""Lightning: log ranks and compression while a module trains.

Optimizers need nothing: return one of :mod:`tenfold.optim` from ``configure_optimizers``.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from tenfold.integrations.scalars import rank_scalars

__all__ = ["RankLogger"]


class RankLogger(Callback):
    """Sends :func:`~tenfold.integrations.rank_scalars` to the loggers of the trainer.

    Parameters
    ----------
    every_n_steps : int or None
        Optimizer steps between two entries; None takes the trainer's ``log_every_n_steps``.

    Raises
    ------
    ValueError
        If ``every_n_steps`` is less than 1.
    """

    def __init__(self, every_n_steps: int | None = None):
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._last = -1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        every = self.every_n_steps or max(1, getattr(trainer, "log_every_n_steps", 50))
        if trainer.global_step % every == 0:
            self._log(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, pl_module)

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # While gradients accumulate, several batches end at one step.
        if trainer.global_step != self._last:
            self._last = trainer.global_step
            for logger in trainer.loggers:
                logger.log_metrics(rank_scalars(pl_module), step=trainer.global_step)
