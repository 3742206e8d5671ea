"""A run in memory: everything that its next step depends on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.experiments.batches import epoch_seed
from tenfold.experiments.config import TrainConfig
from tenfold.experiments.metrics import EpochRecord
from tenfold.experiments.processes import Processes
from tenfold.optim import StepGuard


@dataclass
class Progress:
    """An epoch that has begun.

    Parameters
    ----------
    order : Tensor
        Images of the epoch in the order in which they are drawn, int64 of shape (n,), on the CPU.
    generator : torch.Generator
        Draws the augmentation of the next batch.
    done : int
        Batches seen.
    losses : list of Tensor
        Of the steps taken.
    total : Tensor
        Their sum, on the device of the run.
    skipped : int
        Steps left out because they were not finite.
    seconds : float
        Time spent in the epoch, without that for checkpoints.
    lr : float
        Learning rate of the last step.
    """

    order: Tensor
    generator: torch.Generator
    total: Tensor
    done: int = 0
    losses: list[Tensor] = field(default_factory=list)
    skipped: int = 0
    seconds: float = 0.0
    lr: float = 0.0

    @classmethod
    def begin(cls, seed: int, images: int, device: torch.device) -> Progress:
        """Draw the order of an epoch; dropout starts from the seed, too."""
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(images, generator=generator)
        return cls(order, generator, torch.zeros((), device=device))

    def redraw(self, seed: int, batch_size: int) -> None:
        """Draw what is left of the epoch anew."""
        torch.manual_seed(seed)
        self.generator.manual_seed(seed)
        seen = self.done * batch_size
        left = self.order[seen:]
        self.order = torch.cat([self.order[:seen], left[torch.randperm(len(left), generator=self.generator)]])

    def check(self, images: int, steps: int) -> None:
        """Refuse what was not saved in a training on so many images in so many steps.

        Raises
        ------
        ValueError
            The order is not one of the images, or more steps are done than there are.
        """
        if self.order.shape != (images,) or not torch.equal(self.order.sort().values, torch.arange(images)):
            raise ValueError(f"its order of images is not one of the numbers 0 to {images - 1}")
        if self.done > steps:
            raise ValueError(f"{self.done} of {steps} steps of an epoch are done")

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain Python data, with the state of torch's own generators."""
        device = self.total.device
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return {
            "order": self.order,
            "generator": self.generator.get_state(),
            "random": torch.get_rng_state(),
            "cuda_random": cuda,
            "total": self.total,
            "done": self.done,
            "losses": torch.stack(self.losses) if self.losses else torch.zeros(0),
            "skipped": self.skipped,
            "seconds": self.seconds,
            "lr": self.lr,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any], device: torch.device) -> Progress:
        """Inverse of :meth:`to_dict`; sets the state of torch's own generators."""
        torch.set_rng_state(values["random"])
        if values["cuda_random"] is not None and device.type == "cuda":
            torch.cuda.set_rng_state(values["cuda_random"], device)
        generator = torch.Generator()
        generator.set_state(values["generator"])
        return cls(
            order=values["order"],
            generator=generator,
            total=values["total"].to(device),
            done=values["done"],
            losses=list(values["losses"].to(device)),
            skipped=values["skipped"],
            seconds=values["seconds"],
            lr=values["lr"],
        )


@dataclass
class TrainingState:
    """A run between two steps.

    Between two epochs there is no random state in it: every epoch draws from generators that the seed, its
    number and the number of rollbacks decide.

    Parameters
    ----------
    config : TrainConfig
        The run.
    model, optimizer, scheduler
        After the last step.
    guard : StepGuard, optional
        Takes the steps, where something else than an error follows on one that is not finite.
    processes : Processes
        Those that train together.
    parallel : nn.Module, optional
        The model as it is called in training, where that is not `model` itself.
    epoch, step : int
        Epochs and batches done.
    progress : Progress, optional
        Of the epoch that has begun.
    rollbacks : int
        Returns to a checkpoint so far.
    records : list of EpochRecord
        One for every epoch done.
    rank_history : list of (int, dict)
        Step and ranks of every layer, from the start (step 0) and then whenever a rank changed.
    """

    config: TrainConfig
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    guard: StepGuard | None = None
    processes: Processes = field(default_factory=Processes)
    parallel: nn.Module | None = None
    epoch: int = 0
    step: int = 0
    progress: Progress | None = None
    rollbacks: int = 0
    records: list[EpochRecord] = field(default_factory=list)
    rank_history: list[tuple[int, dict[str, list[int]]]] = field(default_factory=list)

    @property
    def seed(self) -> int:
        """Of the draws that follow, unless the epoch has begun."""
        return epoch_seed(self.config.seed, self.epoch + 1, self.rollbacks)
