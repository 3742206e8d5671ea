"""The state of a run on the disk: everything that its next step depends on."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from tenfold.atomic import replacing
from tenfold.experiments.config import TrainConfig
from tenfold.experiments.metrics import EpochRecord
from tenfold.experiments.state import Progress, TrainingState

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
    "progress",
    "rollbacks",
    "guard",
}

# Keys that checkpoints of earlier versions do not have, with what they were.
_ADDED_LATER: dict[str, Any] = {"progress": None, "rollbacks": 0, "guard": None}


def save(path: Path, state: TrainingState) -> None:
    """Write `state` to `path`; an interruption or an error leaves the former file whole.

    The file holds tensors and plain Python data only and loads with ``torch.load(..., weights_only=True)``.

    Raises
    ------
    OSError
        The file cannot be written.
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
        "progress": None if state.progress is None else state.progress.to_dict(),
        "rollbacks": state.rollbacks,
        "guard": None if state.guard is None else state.guard.state_dict(),
    }
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(contents, file)  # to an open file: torch's own way to open one hides why writing fails


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Returns
    -------
    dict
        With the keys format, torch, config, epoch, step, model, optimizer, scheduler, records, rank_history,
        progress (None between two epochs), rollbacks, guard.

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
    if isinstance(contents, dict):
        contents = {**_ADDED_LATER, **contents}
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

    Within an epoch torch's own generators are set, too.

    Raises
    ------
    ValueError
        The tensors do not fit the model or the optimizer.
    """
    try:
        state.model.load_state_dict(contents["model"])
        state.optimizer.load_state_dict(contents["optimizer"])  # after the model, which has the ranks
        state.scheduler.load_state_dict(contents["scheduler"])
        if state.guard is not None:
            state.guard.load_state_dict(contents["guard"])
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} does not fit the network {state.config.model!r}: {reason}") from error
    state.epoch, state.step, state.rollbacks = contents["epoch"], contents["step"], contents["rollbacks"]
    state.records = [EpochRecord(**values) for values in contents["records"]]
    state.rank_history = [(step, ranks) for step, ranks in contents["rank_history"]]
    if contents["progress"] is not None:
        device = next(state.model.parameters()).device
        state.progress = Progress.from_dict(contents["progress"], device)
