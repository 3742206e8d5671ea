"""The rounds of pruning with rewinding, and the early values of a network that it goes back to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ROUNDS = 5

_EARLY = "early_values__"
_MASK = "weight_mask"


def round_ends(total_steps: int) -> list[int]:
    """Steps after which the rounds end; the last one ends the run.

    Raises
    ------
    ValueError
        There are fewer steps than rounds.
    """
    if total_steps < ROUNDS:
        raise ValueError(
            f"epochs: the method 'prune-imp' trains in {ROUNDS} rounds, and this run has {total_steps} steps"
        )
    return [total_steps * k // ROUNDS for k in range(1, ROUNDS + 1)]


def early_step(total_steps: int) -> int:
    """The step whose weights are gone back to; 0 is the start."""
    return round_ends(total_steps)[0] // 10


def add_early_values(model: nn.Module) -> None:
    """Give `model` a buffer for everything that is trained, with the values at the start."""
    for name, value in list(_trained(model).items()):
        model.register_buffer(_buffer(name), value.detach().clone())


def keep_early_values(model: nn.Module) -> None:
    """Copy the present values to the buffers."""
    with torch.no_grad():
        for name, value in _trained(model).items():
            model.get_buffer(_buffer(name)).copy_(value)


def rewind(model: nn.Module) -> None:
    """Copy the early values back; masks stay."""
    with torch.no_grad():
        for name, value in _trained(model).items():
            value.copy_(model.get_buffer(_buffer(name)))


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and running statistics."""
    buffers = {
        name: value
        for name, value in model.named_buffers()
        if not name.endswith(_MASK) and not name.startswith(_EARLY)
    }
    return {**dict(model.named_parameters()), **buffers}


def _buffer(name: str) -> str:
    return _EARLY + name.replace(".", "__")
