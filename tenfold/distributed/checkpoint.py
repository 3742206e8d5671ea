"""Checkpoints written and read by all processes together, through rank changes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tenfold.distributed.sharded import is_sharded
from tenfold.distributed.tensor_folder import TensorFolder, first_line, write_tensors
from tenfold.manifolds import is_low_rank, rank_tuple
from tenfold.unchanged import unchanged_on_error

__all__ = ["load_checkpoint", "save_checkpoint"]

_PLAIN = "tenfold"
"""Name of the tensor whose bytes are what is not a tensor, in JSON."""
_FORMAT = 1
_NUMBERS = {str(dtype): dtype for dtype in (torch.float32, torch.float64)}
_LARGEST_PLAIN = 2**26  # bytes; no group of hyperparameters comes near


def save_checkpoint(
    folder: str | os.PathLike[str],
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write model and optimizer with ``torch.distributed.checkpoint``, as safetensors.

    All processes call it; each writes its shards, and process 0 what is whole in all of them. The folder
    appears in one step when everything is in it. No file holds pickled data.

    Parameters
    ----------
    folder : path
        A folder that does not exist yet, seen by all processes; its parent does.
    model : torch.nn.Module
        Also inside a ``DistributedDataParallel``, or sharded.
    optimizer : torch.optim.Optimizer or None
        Its state is saved under the names of the model's parameters.
    extra : dict or None
        Further plain data, which :func:`load_checkpoint` returns; what process 0 gives is kept.

    Raises
    ------
    FileExistsError
        If the folder exists.
    OSError
        If the files cannot be written; there is no such folder then.
    ValueError
        If the optimizer moves a parameter that is not the model's.
    TypeError
        If ``extra`` is not plain data.

    Notes
    -----
    Complexity: the bytes of the state, once over all processes.
    """
    bare = _bare(model)
    tensors: dict[str, torch.Tensor] = {f"model.{k}": v for k, v in bare.state_dict().items()}
    plain: dict[str, Any] = {"format": _FORMAT, "extra": extra or {}, "groups": None, "state": {}}
    if optimizer is not None:
        groups, states = _by_name(bare, optimizer)
        plain["groups"] = groups
        for name, state in states.items():
            tensors |= {f"optimizer.{name}.{k}": v for k, v in state.items() if isinstance(v, torch.Tensor)}
            plain["state"][name] = {k: v for k, v in state.items() if not isinstance(v, torch.Tensor)}
    written = json.dumps(plain, default=_as_plain).encode()
    tensors[_PLAIN] = torch.frombuffer(bytearray(written), dtype=torch.uint8)
    write_tensors(Path(folder), tensors)


def load_checkpoint(
    folder: str | os.PathLike[str], model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote, in any number of processes.

    The low-rank parameters take the saved ranks, sharded tensors are cut for the processes that there are
    now. Everything is read and checked before anything is changed.

    Parameters
    ----------
    folder : path
        The checkpoint.
    model : torch.nn.Module
        Built, wrapped and sharded as for training, at whatever ranks.
    optimizer : torch.optim.Optimizer or None
        Of the same kind as the saved one; None leaves its state in the file.

    Returns
    -------
    dict
        The ``extra`` data.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If the checkpoint is damaged or does not fit; model and optimizer are then as they were.
    """
    files = TensorFolder(Path(folder))
    bare = _bare(model)
    plain = _plain(files)
    targets = dict(_model_targets(files, bare, _ranks(files, bare)))
    if optimizer is not None:
        targets |= _optimizer_targets(files, bare, optimizer, plain, targets)
    files.read(targets)
    packed = None if optimizer is None else _packed(bare, optimizer, plain, targets)
    with unchanged_on_error(bare):
        bare.load_state_dict(_under("model.", targets))
        try:
            if optimizer is not None:
                optimizer.load_state_dict(packed)  # type: ignore[arg-type]
        except Exception as error:
            raise ValueError(f"the optimizer in {files.path} does not fit: {first_line(error)}") from error
    extra: dict[str, Any] = plain["extra"]
    return extra


# What is read -----------------------------------------------------------------------------------


def _plain(files: TensorFolder) -> dict[str, Any]:
    size = _size(files, _PLAIN)
    if len(size) != 1 or size[0] > _LARGEST_PLAIN:
        raise ValueError(f"{files.path} is not a checkpoint of save_checkpoint")
    written = torch.empty(size, dtype=torch.uint8)
    files.read({_PLAIN: written})
    try:
        contents = json.loads(bytes(written.tolist()))
    except Exception as error:
        raise ValueError(f"{files.path} is damaged: {first_line(error)}") from error
    if not isinstance(contents, dict) or contents.get("format") != _FORMAT:
        raise ValueError(f"{files.path} is not a checkpoint of this version of tenfold")
    return contents


def _size(files: TensorFolder, name: str) -> tuple[int, ...]:
    """The size of a saved tensor, without dimensions where there is none."""
    return tuple(files.saved[name].size) if name in files.saved else ()


def _ranks(files: TensorFolder, model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The saved ranks of the low-rank parameters, under all their names."""
    wanted = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        if is_low_rank(p):
            key, count = f"model.{name}_rank", len(rank_tuple(p.manifold.rank))
            if _size(files, key) != (count,):
                raise ValueError(f"{files.path} has no {count} ranks for {name}")
            wanted[key] = torch.empty(count, dtype=torch.int64)
    if wanted:
        files.read(wanted)
    return {key.removeprefix("model.").removesuffix("_rank"): tuple(t.tolist()) for key, t in wanted.items()}


def _model_targets(
    files: TensorFolder, model: nn.Module, ranks: dict[str, tuple[int, ...]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors for what the model needs, in the sizes that the file must have."""
    here = model.state_dict()
    known = {name.removeprefix("model.") for name in files.saved if name.startswith("model.")}
    if known != set(here):
        raise ValueError(
            f"{files.path} does not fit the model: missing {sorted(set(here) - known)[:3]}, "
            f"unexpected {sorted(known - set(here))[:3]}"
        )
    parameters = model.named_parameters(remove_duplicate=False)
    manifolds = {name: p.manifold for name, p in parameters if is_low_rank(p)}
    for name, value in here.items():
        shape = tuple(value.shape)
        if name in manifolds:
            try:
                shape = (*shape[:-1], manifolds[name].with_rank(ranks[name]).size)
            except ValueError as error:
                raise ValueError(f"{files.path} has ranks that {name} cannot take: {error}") from error
        found = _size(files, f"model.{name}")
        if found != shape:
            raise ValueError(f"{files.path} has {name} with the shape {found}, the model needs {shape}")
        yield f"model.{name}", _like(value, shape, value.dtype)


def _optimizer_targets(
    files: TensorFolder,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    plain: dict[str, Any],
    targets: dict[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    groups, _ = _by_name(model, optimizer)
    theirs = plain.get("groups")
    if theirs is None:
        raise ValueError(f"{files.path} holds no optimizer")
    if [group.get("params") for group in theirs] != [group["params"] for group in groups]:
        raise ValueError(f"{files.path} has an optimizer of other parameters, or in another order")
    limits = {name: 4 * targets[f"model.{name}"].numel() for group in groups for name in group["params"]}
    wanted = {}
    for key, item in files.saved.items():
        if not key.startswith("optimizer."):
            continue
        name, _, entry = key.removeprefix("optimizer.").rpartition(".")
        if name not in limits or item.size.numel() > max(limits[name], 1):
            raise ValueError(f"{files.path} has a state {entry} of {tuple(item.size)} numbers for {name!r}")
        value = targets[f"model.{name}"]
        shape = tuple(item.size)
        like = value if shape == tuple(value.shape) else torch.empty(0, device=value.device)
        wanted[key] = _like(like, shape, item.properties.dtype)
    return wanted


def _packed(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    plain: dict[str, Any],
    targets: dict[str, torch.Tensor],
) -> dict[str, Any]:
    """What was read as the optimizer's own ``state_dict``."""
    packed = optimizer.state_dict()
    numbers: dict[str, int] = {}
    for group, kept in zip(packed["param_groups"], plain["groups"], strict=True):
        numbers |= dict(zip(kept["params"], group["params"], strict=True))
        group |= {k: _restored(v, group.get(k)) for k, v in kept.items() if k != "params"}
    state: dict[int, dict[str, Any]] = {numbers[name]: dict(kept) for name, kept in plain["state"].items()}
    for key, value in _under("optimizer.", targets).items():
        name, _, entry = key.rpartition(".")
        state.setdefault(numbers[name], {})[entry] = value
    return {**packed, "state": state}


# Names and pieces -------------------------------------------------------------------------------


def _by_name(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Groups and state of an optimizer, with names in the place of numbers."""
    # Those of the state, where a normalisation inside of a convolution keeps its name; the first of several.
    names = {id(value): name for name, value in reversed(model.state_dict(keep_vars=True).items())}
    packed = optimizer.state_dict()
    groups, states = [], {}
    for group, live in zip(packed["param_groups"], optimizer.param_groups, strict=True):
        members = []
        for number, p in zip(group["params"], live["params"], strict=True):
            if id(p) not in names:
                raise ValueError(
                    f"the optimizer moves a parameter of shape {tuple(p.shape)} that is not the model's"
                )
            members.append(names[id(p)])
            if number in packed["state"]:
                states[names[id(p)]] = packed["state"][number]
        groups.append({**{k: v for k, v in group.items() if k != "param_names"}, "params": members})
    return groups, states


def _bare(model: nn.Module) -> nn.Module:
    """The network inside of a ``DistributedDataParallel``."""
    bare: nn.Module = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    return bare


def _like(value: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    if is_sharded(value) and shape == tuple(value.shape):
        return torch.empty_like(value, dtype=dtype)
    return torch.empty(shape, dtype=dtype, device=value.device)


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _restored(kept: Any, present: Any) -> Any:
    """A hyperparameter as it was: JSON has neither tuples nor tensors."""
    if isinstance(kept, dict) and set(kept) == {"number", "dtype"}:
        return torch.tensor(kept["number"], dtype=_NUMBERS[kept["dtype"]])
    return tuple(kept) if isinstance(present, tuple) and isinstance(kept, list) else kept


def _as_plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.numel() == 1:  # a learning rate kept in a tensor
        return {"number": value.item(), "dtype": str(value.dtype)}
    raise TypeError(f"{value!r} cannot be saved: only numbers, strings, lists and dictionaries can")
