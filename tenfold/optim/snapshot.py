"""The state of a training in memory, to go back to."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.optim.swa_utils import AveragedModel

__all__ = ["Keepable", "Snapshot"]


class Keepable(Protocol):
    """What has a state: models, optimizers, schedulers."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Take the state back."""


class Snapshot:
    """Copies of the states of some objects.

    Parameters
    ----------
    kept : sequence of Keepable
        In the order in which they are restored: a model before the optimizer of its parameters.
    """

    def __init__(self, kept: Sequence[Keepable]):
        self._kept = list(kept)
        self._states = [copy.deepcopy(thing.state_dict()) for thing in self._kept]

    def renew_schedules(self) -> None:
        """Copy anew what follows a step: groups of optimizers, averages of models, and what is no module.

        Models and the state of their parameters stay those of one moment; ranks may have changed since.
        """
        for k, thing in enumerate(self._kept):
            if isinstance(thing, torch.optim.Optimizer):
                groups = copy.deepcopy(thing.state_dict()["param_groups"])
                self._states[k] = {**self._states[k], "param_groups": groups}
            elif isinstance(thing, AveragedModel) or not isinstance(thing, torch.nn.Module):
                self._states[k] = copy.deepcopy(thing.state_dict())

    def restore(self) -> None:
        """Give every object the state that it had, again and again if need be."""
        for thing, state in zip(self._kept, self._states, strict=True):
            thing.load_state_dict(copy.deepcopy(state))
