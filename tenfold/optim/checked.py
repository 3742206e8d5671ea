"""An optimizer whose hyperparameters and saved state are checked before they are taken over."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import geoopt
import torch

from tenfold.optim.hyperparameters import check_number, check_whole
from tenfold.optim.master import MASTER, needs_master
from tenfold.optim.rank_policy import RankPolicy, policy_from_state, policy_state
from tenfold.optim.saved_state import checked_state_dict, checking
from tenfold.optim.update import State

__all__ = ["CheckedOptimizer", "Group"]

Group: TypeAlias = dict[str, Any]
"""A parameter group."""


class CheckedOptimizer(torch.optim.Optimizer, metaclass=abc.ABCMeta):
    """Parameter groups with rank policies, names for errors, and a state of plain data and tensors."""

    #: Names of the state tensors that are tangent vectors; they are transported.
    tangent_state: tuple[str, ...] = ()
    #: Names of the state tensors that hold squares of coordinates; they follow the bases.
    square_state: tuple[str, ...] = ()
    # Set-up ----------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its hyperparameters; see :class:`torch.optim.Optimizer`."""
        self._check_hyperparameters({**self.defaults, **param_group})
        super().add_param_group(param_group)
        self.param_groups[-1].setdefault("step", 0)

    def _check_hyperparameters(self, complete: Group) -> None:
        policy, stabilize = complete["rank_adaptation"], complete["stabilize"]
        if policy is not None and not isinstance(policy, RankPolicy):
            raise TypeError(f"rank_adaptation must be a RankPolicy or None, got {policy!r}")
        if stabilize is not None:
            check_whole("stabilize", stabilize)
        if complete["damping"] is not None:
            check_number("damping", complete["damping"])
        self._check_group(complete)

    def _check_group(self, group: Group) -> None:
        """Raise ValueError if a hyperparameter is out of range."""

    @staticmethod
    def _check_lr(lr: float | torch.Tensor) -> None:
        if isinstance(lr, torch.Tensor) and lr.numel() != 1:
            raise ValueError(f"a tensor lr must hold one number, got the shape {tuple(lr.shape)}")
        check_number("lr", lr.item() if isinstance(lr, torch.Tensor) else lr)

    def _named(self) -> Iterator[tuple[str, torch.Tensor]]:
        for g, group in enumerate(self.param_groups):
            names = group.get("param_names")
            for k, p in enumerate(group["params"]):
                where = f"parameter {names[k]!r}" if names else f"parameter {k} of group {g}"
                on = p.manifold if isinstance(p, geoopt.ManifoldParameter) else f"shape {tuple(p.shape)}"
                yield f"{where} ({on})", p

    def _name(self, parameter: torch.Tensor) -> str:
        return next(name for name, p in self._named() if p is parameter)

    def _state_shape(self, parameter: torch.Tensor) -> tuple[int, ...]:
        """Shape of the tangent vectors in the state of a parameter."""
        return tuple(parameter.shape)

    def _check_state(self, parameters: Iterable[torch.Tensor]) -> None:
        """Raise ValueError if the rank of a parameter has changed behind the optimizer's back."""
        for p in parameters:
            for name in self._held(self.tangent_state, self.state[p]):
                found, needed = tuple(self.state[p][name].shape), self._state_shape(p)
                if found != needed:
                    raise ValueError(
                        f"{name} of {self._name(p)} has the shape {found} instead of {needed}: load the "
                        "model's state before the optimizer's"
                    )

    @staticmethod
    def _held(names: tuple[str, ...], state: State) -> list[str]:
        return [name for name in names if name in state]

    # State -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data only, so that it loads with ``weights_only=True``."""
        packed = super().state_dict()
        packed["param_groups"] = [
            {**group, "rank_adaptation": policy_state(group["rank_adaptation"])}
            for group in packed["param_groups"]
        ]
        return packed

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` gave, also across rank changes.

        Load the model's state first: its layers take the saved ranks, and the optimizer's state
        must fit them.

        Raises
        ------
        ValueError
            If the groups or the state do not fit the parameters, or a hyperparameter is not one; the
            optimizer is then unchanged.
        """
        taken: dict[str, Any] = {}

        def check(given: dict[str, Any]) -> dict[str, Any]:
            taken.update(self._checked(given))
            return taken

        with checking(self, state_dict, check):
            super().load_state_dict(state_dict)
        numbers = [number for group in taken["param_groups"] for number in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for number, p in zip(numbers, parameters, strict=True):
            # torch rounds the state to the type of the parameter; beside a master copy it is not.
            if needs_master(p):
                for name, value in taken["state"].get(number, {}).items():
                    if isinstance(value, torch.Tensor):
                        self.state[p][name] = value.to(p.device, copy=True)

    def _checked(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """A state that fits, with rank policies in the place of plain data."""
        state_dict = checked_state_dict(self, state_dict, self._saved_shape)
        groups = [
            {**group, "rank_adaptation": policy_from_state(group.get("rank_adaptation"))}
            for group in state_dict["param_groups"]
        ]
        numbers = [number for group in groups for number in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        owners = [group for group in groups for _ in group["params"]]
        for group in groups:
            self._check_hyperparameters(group)
        for number, p, group in zip(numbers, parameters, owners, strict=True):
            self._check_saved_state(number, p, state_dict["state"].get(number, {}), group)
        return {**state_dict, "param_groups": groups}

    def _saved_shape(self, parameter: torch.Tensor, name: str) -> tuple[int, ...] | None:
        """Shape that a tensor in the saved state of a parameter must have; None where a subclass knows."""
        if name in (*self.tangent_state, *self.square_state):
            return self._state_shape(parameter)
        return tuple(parameter.shape) if name == MASTER else None

    def _check_saved_state(self, number: int, parameter: torch.Tensor, saved: State, group: Group) -> None:
        """Raise ValueError if a step could not go on from the saved state of a parameter."""
