"""Batches of parameters that move together, and what they become if the whole step succeeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import geoopt
import torch

from tenfold.manifolds import LowRankManifold, Truncation, is_low_rank, move_
from tenfold.optim.master import MASTER, needs_master, working_point
from tenfold.optim.rank_policy import Pending

__all__ = ["Adapting", "Batch", "State", "Update", "batches"]

State: TypeAlias = dict[str, Any]
"""State of a parameter or a batch: tensors, and integers that a batch shares."""


@dataclass
class Update:
    """What one parameter becomes.

    Attributes
    ----------
    parameter : geoopt.ManifoldParameter
        The parameter.
    point : torch.Tensor
        Its new value.
    state : dict
        Its new state.
    manifold : LowRankManifold or None
        Its new manifold, if ranks were adapted.
    implied : tuple of str
        State that is finite if the point is, because the point has moved along it.
    """

    parameter: geoopt.ManifoldParameter
    point: torch.Tensor
    state: State = field(default_factory=dict)
    manifold: LowRankManifold | None = None
    implied: tuple[str, ...] = ()

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Everything that must be finite."""
        state = (value for name, value in self.state.items() if name not in self.implied)
        return [self.point, *(value for value in state if isinstance(value, torch.Tensor))]

    def commit(self, state: State) -> None:
        """Carry the update out; ``state`` is the optimizer's entry for the parameter."""
        if needs_master(self.parameter):
            state[MASTER] = self.point
        else:
            state.pop(MASTER, None)  # of a parameter that was in half precision before
        if self.manifold is None or self.manifold == self.parameter.manifold:
            self.parameter.copy_(self.point)
        else:
            move_(self.parameter, self.manifold, self.point.to(self.parameter.dtype))
        # What the step did not go on with belongs to the old point.
        for name in [name for name in state if name not in self.state and name != MASTER]:
            del state[name]
        state.update(self.state)
        for name, value in state.items():
            # A view into a batch is copied, so that no parameter keeps the memory of the others alive.
            if isinstance(value, torch.Tensor) and value._base is not None:
                state[name] = value.clone()


@dataclass
class Adapting:
    """A parameter that has been stepped and waits for its ranks.

    Attributes
    ----------
    parameter : geoopt.ManifoldParameter
        The parameter, still as it was.
    truncation : Truncation
        The stepped tensor.
    state : dict
        The new state, still at another point.
    manifold : LowRankManifold
        The manifold of that point.
    x : torch.Tensor
        That point.
    frame
        Its frame, if it is known.
    """

    parameter: geoopt.ManifoldParameter
    truncation: Truncation
    state: State
    manifold: LowRankManifold
    x: torch.Tensor
    frame: Any = None

    @property
    def pending(self) -> Pending:
        """What a policy decides on."""
        return Pending(self.parameter.manifold, self.truncation)


@dataclass
class Batch:
    """Parameters on equal manifolds, stacked.

    Attributes
    ----------
    members : list of geoopt.ManifoldParameter
        The parameters.
    x, grad : torch.Tensor
        Their values (master copies of half-precision parameters) and autograd gradients, shape
        ``(members, size)``, or as they are for one member.
    state : dict
        Their state, stacked alike.
    """

    members: list[geoopt.ManifoldParameter]
    x: torch.Tensor
    grad: torch.Tensor
    state: State

    @classmethod
    def of(cls, members: list[geoopt.ManifoldParameter], states: Sequence[State]) -> Batch:
        """Stack some parameters and their states."""
        points = [working_point(p, s.get(MASTER)) for p, s in zip(members, states, strict=True)]
        grads = [p.grad.to(x.dtype) for p, x in zip(members, points, strict=True) if p.grad is not None]
        state = {
            name: _stack([_like(x, s[name]) for x, s in zip(points, states, strict=True)])
            if isinstance(value, torch.Tensor)
            else value
            for name, value in states[0].items()
            if name != MASTER
        }
        return cls(members, _stack(points), _stack(grads), state)

    @property
    def manifold(self) -> geoopt.Manifold:
        """The members' common manifold."""
        return self.members[0].manifold

    def parts(self, stacked: torch.Tensor) -> list[torch.Tensor]:
        """What belongs to each member of a stacked tensor."""
        return [stacked] if len(self.members) == 1 else list(stacked)

    def split(
        self, point: torch.Tensor, state: State
    ) -> Iterator[tuple[geoopt.ManifoldParameter, torch.Tensor, State]]:
        """One member after the other, with its part of a stacked tensor and state."""
        if len(self.members) == 1:
            yield self.members[0], point, state
            return
        for k, p in enumerate(self.members):
            yield p, point[k], {n: v[k] if isinstance(v, torch.Tensor) else v for n, v in state.items()}


_LARGE_ON_CPU = 2**14
"""Packed size from which stacking costs more on the CPU than it saves in calls."""


def batches(
    parameters: Sequence[geoopt.ManifoldParameter], states: Any, *, foreach: bool | None
) -> Iterator[Batch]:
    """Stack parameters on equal low-rank manifolds; leave the others alone.

    Parameters
    ----------
    parameters : sequence of geoopt.ManifoldParameter
        Parameters with gradients.
    states : mapping
        The optimizer's state.
    foreach : bool or None
        False keeps every parameter by itself; None does so for large parameters on the CPU, where the copies
        of a stack cost more than the calls that it saves.
    """
    groups: dict[Any, list[geoopt.ManifoldParameter]] = {}
    for number, p in enumerate(parameters):
        key: Any = number
        together = foreach if foreach is not None else p.device.type != "cpu" or p.numel() < _LARGE_ON_CPU
        if together and is_low_rank(p) and p.ndim == 1:
            # Tensors are stacked; what is not a tensor must be equal.
            known = sorted((n, None if isinstance(v, torch.Tensor) else v) for n, v in states[p].items())
            key = (p.manifold, p.dtype, p.device, tuple(known))
        groups.setdefault(key, []).append(p)
    for members in groups.values():
        yield Batch.of(members, [states[p] for p in members])


def _like(x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """State of the type that its parameter has by now, as after ``model.double()``."""
    return value if x.is_complex() else value.to(x)


def _stack(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.stack(tensors)
