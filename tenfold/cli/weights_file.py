"""Files of weights: read without executing anything in them, written in one step."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tenfold.atomic import replacing

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
    library = _safetensors() if path.suffix == ".safetensors" else None
    try:
        if library is not None:
            contents: Any = library.load_file(path)
        else:
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is corrupt, or holds more than tensors and plain data, which is not loaded: "
            "save model.state_dict()"
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, AttributeError, OSError) as error:
        raise ValueError(f"{path} is truncated or not a file of weights ({type(error).__name__})") from error
    except Exception as error:  # safetensors has an error class of its own
        if type(error).__name__ != "SafetensorError":
            raise
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    candidates = [contents, *(contents.get(key) for key in _WHERE)] if isinstance(contents, dict) else []
    for state in candidates:
        if isinstance(state, dict) and any(isinstance(value, torch.Tensor) for value in state.values()):
            return {str(key): value for key, value in state.items() if isinstance(value, torch.Tensor)}
    raise ValueError(f"{path} holds no state dictionary, neither itself nor under one of {list(_WHERE)}")


def write_weights(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Write a state dictionary, as safetensors if the name ends so, replacing what was there in one step."""
    with replacing(path) as temporary:
        if path.suffix == ".safetensors":
            _safetensors().save_file({key: value.contiguous() for key, value in state.items()}, temporary)
        else:
            with temporary.open("wb") as file:  # torch's own way to open it hides why writing fails
                torch.save(state, file)


def dense_layers(state: dict[str, torch.Tensor]) -> nn.Module:
    """A module with a dense layer for every weight of two to five axes, under the names of the state.

    Two axes are read as a linear layer, more as a convolution; the layers have no bias.
    """
    root = nn.Module()
    for name, weight in state.items():
        *parents, last = name.split(".")
        if last != "weight" or not parents or not 2 <= weight.ndim <= 5 or not weight.is_floating_point():
            continue
        module = root
        for parent in parents[:-1]:
            if not hasattr(module, parent):
                module.add_module(parent, nn.Module())
            module = module.get_submodule(parent)
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
        module.add_module(parents[-1], layer)
    return root


def _safetensors() -> Any:
    if importlib.util.find_spec("safetensors") is None:
        raise ValueError("safetensors is not installed: pip install 'tenfold[safetensors]'")
    import safetensors.torch

    return safetensors.torch
