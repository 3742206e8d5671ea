"""The state of a run on the disk: everything that its next step depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tenfold.atomic import replacing
from tenfold.experiments.compression import ranks
from tenfold.experiments.config import TrainConfig
from tenfold.experiments.metrics import EpochRecord, check_ranks
from tenfold.experiments.state import Progress, TrainingState
from tenfold.nn import unchanged_on_error
from tenfold.optim import RiemannianOptimizer
from tenfold.optim.saved_state import checked_state_dict
from tenfold.untrusted import values
from tenfold.untrusted.tensors import check_tensor
from tenfold.untrusted.torch_file import load_torch

_FORMAT = 1

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
        contents = load_torch(path, "a checkpoint")
    except ValueError as error:
        raise ValueError(f"{error}; delete it to train from the start") from error
    try:
        complete = _ADDED_LATER | contents if isinstance(contents, dict) else contents
        _CONTENTS("the checkpoint", complete)
        return dict(complete)
    except ValueError as error:
        message = f"{path} is not a checkpoint of a run of this version of tenfold: {error}"
        raise ValueError(message) from error


def check_same_run(path: Path, contents: dict[str, Any], config: TrainConfig) -> None:
    """Refuse a checkpoint whose run is not the one of `config`.

    Raises
    ------
    ValueError
        They differ; the message names every field with both values.
    """
    try:
        saved = TrainConfig.from_dict(contents["config"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is of no run: {error}") from error
    differences = saved.differences(config)
    if differences:
        listed = ", ".join(f"{name} {saved!r} instead of {asked!r}" for name, saved, asked in differences)
        raise ValueError(f"{path} is of another run: it was trained with {listed}")


def restore(path: Path, contents: dict[str, Any], state: TrainingState) -> None:
    """Put what :func:`read` gave into `state`, whose model and optimizer are freshly built.

    Within an epoch torch's own generators are set, too.

    Raises
    ------
    ValueError
        The tensors do not fit the model or the optimizer, or hold NaN or infinity; `state` is then unchanged.
    """
    try:
        records = [
            EpochRecord.from_dict(f"records[{k}]", saved) for k, saved in enumerate(contents["records"])
        ]
        if not len(records) == contents["epoch"] <= state.config.epochs:
            raise ValueError(f"{len(records)} records of {contents['epoch']} epochs")
        weights, moments = dict(contents["model"]), contents["optimizer"]
        scheduler = _of_the_same_kind(contents["scheduler"], state.scheduler.state_dict())
        present = state.model.state_dict()
        for name, value in weights.items():
            _check_weights(name, value, present.get(name))
        layers = {name: len(rank) for name, rank in ranks(state.model).items()}
        if any({n: len(r) for n, r in saved.items()} != layers for _, saved in contents["rank_history"]):
            raise ValueError(f"the rank history is not that of the layers {', '.join(layers)}")
        if state.guard is not None:
            _GUARD("the guard", contents["guard"])
        progress = None
        if contents["progress"] is not None:
            progress = Progress.from_dict(contents["progress"], next(state.model.parameters()).device)
        with unchanged_on_error(state.model):
            state.model.load_state_dict(weights)
            # After the model, which has the ranks.
            _load_optimizer(state.optimizer, moments)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} does not fit the network {state.config.model!r}: {reason}") from error
    state.scheduler.load_state_dict(scheduler)
    if state.guard is not None:
        state.guard.load_state_dict(contents["guard"])
    state.epoch, state.step, state.rollbacks = contents["epoch"], contents["step"], contents["rollbacks"]
    state.records, state.progress = records, progress
    state.rank_history = [(step, dict(saved)) for step, saved in contents["rank_history"]]


def _tensor(where: str, value: Any) -> None:
    check_tensor(where, value)


_GUARD = values.record(dict.fromkeys(("taken", "skipped", "in_a_row", "rollbacks"), values.whole()))
_PROGRESS = values.record(
    {
        **dict.fromkeys(("order", "generator", "random", "total", "losses"), _tensor),
        "cuda_random": values.optional(_tensor),
        **dict.fromkeys(("done", "skipped"), values.whole()),
        **dict.fromkeys(("seconds", "lr"), values.finite),
    }
)
_CONTENTS = values.record(
    {
        "format": values.one_of(_FORMAT),
        "torch": values.text,
        "config": values.mapping(values.plain),
        "epoch": values.whole(),
        "step": values.whole(1),
        "model": values.mapping(values.anything),
        "optimizer": values.record(
            {"state": values.anything, "param_groups": values.listing(values.mapping(values.anything), 1)}
        ),
        "scheduler": values.mapping(values.anything),
        "records": values.listing(values.anything),
        "rank_history": values.listing(values.row(values.whole(), check_ranks), 1),
        "progress": values.optional(_PROGRESS),
        "rollbacks": values.whole(),
        "guard": values.optional(_GUARD),
    }
)


def _check_weights(name: str, value: object, present: torch.Tensor | None) -> None:
    tensor = check_tensor(name, value, like=present)
    if tensor.is_complex() or not torch.isfinite(tensor).all():
        raise ValueError(f"{name} is complex, or holds NaN or infinity")


def _load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load the state; torch's own optimizers, which check little, get it checked as ours do."""
    if not isinstance(optimizer, RiemannianOptimizer):
        saved = checked_state_dict(optimizer, saved)
    optimizer.load_state_dict(saved)


def _of_the_same_kind(saved: Any, present: Any, where: str = "scheduler") -> Any:
    """`saved`, if it has the layout of `present`: torch takes over whatever a scheduler is given."""
    if isinstance(present, dict):
        values.record(dict.fromkeys(present, values.anything))(where, saved)
        return {key: _of_the_same_kind(saved[key], present[key], f"{where}.{key}") for key in present}
    if isinstance(present, (list, tuple)):
        values.row(*[values.anything] * len(present))(where, saved)
        return [
            _of_the_same_kind(one, other, f"{where}[{k}]")
            for k, (one, other) in enumerate(zip(saved, present, strict=True))
        ]
    if isinstance(present, (bool, str)) or present is None:
        values.one_of(present, *((True, False) if isinstance(present, bool) else ()))(where, saved)
    else:
        values.finite(where, saved)
    return saved
