"""The state of a run after an epoch, on the disk: everything that the next epoch depends on."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tenfold.atomic import replacing
from tenfold.experiments.config import TrainConfig
from tenfold.experiments.metrics import EpochRecord

_FORMAT = 1
_KEYS = {
    "format",
    "torch",
    "config",
    "epoch",
    "step",
    "model",
    "optimizer",
    "scheduler",
    "records",
    "rank_history",
}


@dataclass
class TrainingState:
    """A run between two epochs.

    There is no random state in it: every epoch draws from generators that its seed and its number decide.

    Parameters
    ----------
    config : TrainConfig
        The run.
    model, optimizer, scheduler
        At the end of the last epoch.
    epoch, step : int
        Epochs and optimizer steps done.
    records : list of EpochRecord
        One for every epoch done.
    rank_history : list of (int, dict)
        Step and ranks of every layer, from the start (step 0) and then whenever a rank changed.
    """

    config: TrainConfig
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    epoch: int = 0
    step: int = 0
    records: list[EpochRecord] = field(default_factory=list)
    rank_history: list[tuple[int, dict[str, list[int]]]] = field(default_factory=list)


def save(path: Path, state: TrainingState) -> None:
    """Write `state` to `path`; an interruption leaves the former file whole.

    The file holds tensors and plain Python data only and loads with ``torch.load(..., weights_only=True)``.
    """
    contents = {
        "format": _FORMAT,
        "torch": str(torch.__version__),
        "config": state.config.to_dict(),
        "epoch": state.epoch,
        "step": state.step,
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scheduler": state.scheduler.state_dict(),
        "records": [record.to_dict() for record in state.records],
        "rank_history": state.rank_history,
    }
    with replacing(path) as temporary:
        torch.save(contents, temporary)


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Returns
    -------
    dict
        With the keys format, torch, config, epoch, step, model, optimizer, scheduler, records, rank_history.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is truncated, or not a checkpoint of a run.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is nothing to resume: {path} does not exist")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is truncated or not a checkpoint ({type(error).__name__}); "
            "delete it to train from the start"
        ) from error
    if not isinstance(contents, dict) or set(contents) != _KEYS or contents["format"] != _FORMAT:
        raise ValueError(f"{path} is not a checkpoint of a run of this version of tenfold")
    return contents


def check_same_run(path: Path, contents: dict[str, Any], config: TrainConfig) -> None:
    """Refuse a checkpoint whose run is not the one of `config`.

    Raises
    ------
    ValueError
        They differ; the message names every field with both values.
    """
    differences = TrainConfig.from_dict(contents["config"]).differences(config)
    if differences:
        listed = ", ".join(f"{name} {saved!r} instead of {asked!r}" for name, saved, asked in differences)
        raise ValueError(f"{path} is of another run: it was trained with {listed}")


def restore(path: Path, contents: dict[str, Any], state: TrainingState) -> None:
    """Put what :func:`read` gave into `state`, whose model and optimizer are freshly built.

    Raises
    ------
    ValueError
        The tensors do not fit the model or the optimizer.
    """
    try:
        state.model.load_state_dict(contents["model"])
        state.optimizer.load_state_dict(contents["optimizer"])  # after the model, which has the ranks
        state.scheduler.load_state_dict(contents["scheduler"])
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} does not fit the network {state.config.model!r}: {reason}") from error
    state.epoch, state.step = contents["epoch"], contents["step"]
    state.records = [EpochRecord(**values) for values in contents["records"]]
    state.rank_history = [(step, ranks) for step, ranks in contents["rank_history"]]
