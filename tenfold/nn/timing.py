"""Measuring layers on the inputs that a model gives them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["Call", "inputs_of", "seconds_side_by_side"]

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a layer."""


@torch.no_grad()
def inputs_of(model: nn.Module, layers: Collection[nn.Module], example_input: Any) -> dict[nn.Module, Call]:
    """What each layer is called with when the model sees an example, in evaluation mode.

    Parameters
    ----------
    model : torch.nn.Module
        The model; it is as before afterwards.
    layers : collection of torch.nn.Module
        Modules of the model.
    example_input
        The argument of the model; a tuple for several, a dictionary for arguments by name.

    Returns
    -------
    dict
        The first call of each layer that was called.
    """
    calls: dict[nn.Module, Call] = {}

    def remember(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.setdefault(module, (args, kwargs))

    modes = {module: module.training for module in model.modules()}
    hooks = [layer.register_forward_pre_hook(remember, with_kwargs=True) for layer in layers]
    try:
        model.eval()
        if isinstance(example_input, Mapping):
            model(**example_input)
        elif isinstance(example_input, tuple):
            model(*example_input)
        else:
            model(example_input)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return calls


@torch.no_grad()
def seconds_side_by_side(first: nn.Module, second: nn.Module, call: Call) -> tuple[float, float]:
    """Median time of a forward pass of each of two layers, in evaluation mode, by turns.

    Complexity: 11 forward passes of each, of which the first two do not count.
    """
    times: tuple[list[float], list[float]] = ([], [])
    modes = [layer.training for layer in (first, second)]
    for layer in (first, second):
        layer.eval()
    for _ in range(11):
        for layer, taken in zip((first, second), times, strict=True):
            _synchronize(call)
            start = time.perf_counter()
            layer(*call[0], **call[1])
            _synchronize(call)
            taken.append(time.perf_counter() - start)
    for layer, mode in zip((first, second), modes, strict=True):
        layer.train(mode)
    return statistics.median(times[0][2:]), statistics.median(times[1][2:])


def _synchronize(call: Call) -> None:
    if any(isinstance(argument, torch.Tensor) and argument.is_cuda for argument in call[0]):
        torch.cuda.synchronize()
