"""Files of weights: read without executing anything in them, written in one step."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tenfold.atomic import replacing
from tenfold.untrusted.tensors import check_tensor
from tenfold.untrusted.torch_file import load_torch
from tenfold.untrusted.values import brief

_DEEPEST = 100
_WHERE = ("model", "state_dict", "model_state_dict")  # where training scripts put the state of the model


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The state dictionary in a file of ``torch.save`` or safetensors, on the CPU.

    A checkpoint that holds more is searched under ``model``, ``state_dict`` and ``model_state_dict``.

    Parameters
    ----------
    path : Path
        The file; safetensors if its name ends so.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is corrupt, would need code to be executed, or holds no state dictionary.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if path.suffix == ".safetensors":
        library = _safetensors()
        try:
            contents: Any = library.load_file(path)
        except Exception as error:  # its own class of errors, and whatever its header makes torch raise
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
    else:
        contents = load_torch(path, "a file of tensors and plain data, as torch.save(model.state_dict())")
    candidates = [contents, *(contents.get(key) for key in _WHERE)] if isinstance(contents, dict) else []
    for state in candidates:
        if isinstance(state, dict) and any(isinstance(value, torch.Tensor) for value in state.values()):
            try:
                return {
                    str(key): check_tensor(brief(key), value)
                    for key, value in state.items()
                    if isinstance(value, torch.Tensor)
                }
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
    raise ValueError(f"{path} holds no state dictionary, neither itself nor under one of {list(_WHERE)}")


def write_weights(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Write a state dictionary, as safetensors if the name ends so, replacing what was there in one step."""
    with replacing(path) as temporary:
        if path.suffix == ".safetensors":
            _safetensors().save_file(
                {key: value.clone(memory_format=torch.contiguous_format) for key, value in state.items()},
                temporary,
            )
        else:
            with temporary.open("wb") as file:  # torch's own way to open it hides why writing fails
                torch.save(state, file)


def dense_layers(state: dict[str, torch.Tensor]) -> nn.Module:
    """A module with a dense layer for every weight of two to five axes, under the names of the state.

    Two axes are read as a linear layer, more as a convolution; the layers have no bias.

    Raises
    ------
    ValueError
        A name is not one that a layer can have.
    """
    root = nn.Module()
    for name, weight in state.items():
        *parents, last = name.split(".")
        if last != "weight" or not parents or not 2 <= weight.ndim <= 5 or not weight.is_floating_point():
            continue
        out, into, *window = weight.shape
        if 0 in weight.shape:
            continue
        layer: nn.Module
        if window:
            kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(window) - 1]
            layer = kind(into, out, tuple(window), bias=False, device="meta")  # type: ignore[arg-type]
        else:
            layer = nn.Linear(into, out, bias=False, device="meta")
        layer.weight = nn.Parameter(weight)
        try:
            _put(root, parents, layer)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{brief(name)} cannot be the weight of a layer: {error}") from error
    return root


def _put(root: nn.Module, names: list[str], layer: nn.Module) -> None:
    if len(names) > _DEEPEST:
        raise KeyError(f"it is nested deeper than {_DEEPEST} modules")
    module = root
    for name in names[:-1]:
        if name not in module._modules:
            module.add_module(name, nn.Module())
        module = module.get_submodule(name)
    for name, child in module._modules.get(names[-1], nn.Module()).named_children():  # type: ignore[union-attr]
        layer.add_module(name, child)
    module.add_module(names[-1], layer)


def _safetensors() -> Any:
    if importlib.util.find_spec("safetensors") is None:
        raise ValueError("safetensors is not installed: pip install 'tenfold[safetensors]'")
    import safetensors.torch

    return safetensors.torch
