"""State of optimizers that comes from outside: compared with the optimizer before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import geoopt
import torch

from tenfold.untrusted import values
from tenfold.untrusted.tensors import check_tensor

__all__ = ["checked_state_dict", "checking"]

Shape = Callable[[torch.Tensor, str], "tuple[int, ...] | None"]


def checked_state_dict(
    optimizer: torch.optim.Optimizer, saved: Any, shape_of: Shape | None = None
) -> dict[str, Any]:
    """`saved`, if an optimizer can go on from it.

    Groups have as many parameters as those of the optimizer and every hyperparameter that these have, each of
    the same kind; what schedulers add may differ. The state of a parameter is plain numbers and dense, finite
    tensors of its shape.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Whose ``load_state_dict`` will be given the result.
    saved : object
        Anything.
    shape_of : callable, optional
        ``shape_of(parameter, name)``: the shape of a state tensor, or None for any that is not larger than
        the parameter. Without it all have the shape of the parameter.

    Returns
    -------
    dict
        A shallow copy of `saved`.

    Raises
    ------
    ValueError
        If it does not fit; the message says where.
    """
    _LAYOUT("the optimizer's state", saved)
    groups, present = saved["param_groups"], optimizer.param_groups
    if len(groups) != len(present):
        raise ValueError(f"the state has {len(groups)} parameter groups, the optimizer {len(present)}")
    numbers: list[int] = []
    for position, (group, known) in enumerate(zip(groups, present, strict=True)):
        where = f"param_groups[{position}]"
        _check_group(where, group, known)
        numbers += group["params"]
    if len(set(numbers)) != len(numbers):
        raise ValueError("the state names a parameter twice")
    parameters = dict(zip(numbers, (p for group in present for p in group["params"]), strict=True))
    if not isinstance(saved["state"], Mapping):
        raise ValueError(f"the state must be a mapping, not {values.brief(saved['state'])}")
    for number, state in saved["state"].items():
        if type(number) is not int or number not in parameters:
            raise ValueError(
                f"the state has an entry for {values.brief(number)}, which is no parameter of it"
            )
        values.mapping(values.anything)(f"state[{number}]", state)
        for name, value in state.items():
            _check_entry(f"the saved {name} of parameter {number}", name, value, parameters[number], shape_of)
    return dict(saved)


@contextmanager
def checking(
    optimizer: torch.optim.Optimizer, saved: Any, check: Callable[[dict[str, Any]], dict[str, Any]]
) -> Iterator[None]:
    """Have torch's ``load_state_dict`` check the state after the hooks that users registered for it.

    These may bring a state into shape, for parameters in another order for instance.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Whose ``load_state_dict`` is called inside.
    saved : object
        What it will be given.
    check : callable
        Returns what is to be loaded in the place of what the hooks left, or raises.

    Raises
    ------
    ValueError
        If `saved` is no mapping.
    """
    values.mapping(values.anything)("the optimizer's state", saved)
    handle = optimizer.register_load_state_dict_pre_hook(lambda _, state_dict: check(state_dict))
    try:
        yield
    finally:
        handle.remove()


_LAYOUT = values.record(
    {"state": values.anything, "param_groups": values.listing(values.mapping(values.anything), 1)},
    extra=values.anything,
)


_SCHEDULED = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr")
"""What torch's schedulers add to groups: a state may come from a training with another one, or none."""


def _check_group(where: str, group: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    beside = ("params", "param_names", *_SCHEDULED)
    values.record(
        {name: _kind(name, value) for name, value in known.items() if name not in beside},
        extra=_other,
    )(where, {name: value for name, value in group.items() if name not in ("params", "param_names")})
    values.optional(values.listing(values.text))(f"{where}.param_names", group.get("param_names"))
    values.listing(values.whole())(f"{where}.params", group.get("params"))
    if len(group["params"]) != len(known["params"]):
        raise ValueError(
            f"{where} has {len(group['params'])} parameters, that of the optimizer {len(known['params'])}"
        )


def _other(where: str, value: Any) -> None:
    """What schedulers add to groups."""
    values.either(_one_number, values.listing(values.plain), values.plain)(where, value)


def _kind(name: str, value: Any) -> values.Check:
    """What a saved hyperparameter must be, given the present one."""
    if name == "lr":
        return values.either(_one_number, values.finite)
    if name == "foreach" or name == "fused":
        return values.optional(values.flag)
    if name in ("stabilize", "damping", "first_step", "last_curvature", "last_slope"):
        return values.optional(values.whole(1) if name == "stabilize" else values.finite)
    if name == "rank_adaptation":
        return values.anything  # it has a check of its own
    if isinstance(value, bool):
        return values.flag
    if isinstance(value, str):
        return values.text
    if name in ("step", "max_iter", "history_size", "max_doublings", "core_steps"):
        return values.whole(0 if name == "step" else 1)
    if isinstance(value, (int, float)):
        return values.finite
    if isinstance(value, (list, tuple)):
        return values.row(*[_kind(name, item) for item in value])
    return values.anything if value is not None else values.plain


def _one_number(where: str, value: Any) -> None:
    tensor = check_tensor(where, value)
    if tensor.numel() != 1 or not tensor.is_floating_point() or not torch.isfinite(tensor).all():
        raise ValueError(f"{where} must be one finite number")


def _check_entry(where: str, name: str, value: Any, parameter: torch.Tensor, shape_of: Shape | None) -> None:
    shape = tuple(parameter.shape) if shape_of is None else shape_of(parameter, name)
    shape = () if name == "step" else shape
    curved = isinstance(parameter, geoopt.ManifoldParameter)
    if name == "step" and curved:
        values.whole(1)(where, value)
        return
    if value is None and name == "momentum_buffer" and not curved:
        return  # torch's SGD before its first step
    if not isinstance(value, torch.Tensor) and shape is None:
        values.plain(where, value)
        return
    check_tensor(where, value)
    if shape is None and value.numel() > parameter.numel():
        raise ValueError(
            f"{where} has the shape {tuple(value.shape)}, the parameter {tuple(parameter.shape)}"
        )
    if shape is not None and tuple(value.shape) != shape:
        raise ValueError(
            f"{where} has the shape {tuple(value.shape)}, the parameter needs {shape}: load the model's "
            "state before the optimizer's"
        )
    if value.is_complex() != parameter.is_complex():
        raise ValueError(f"{where} is of {value.dtype}, the parameter of {parameter.dtype}")
    if not torch.isfinite(value).all():
        raise ValueError(f"{where} holds NaN or infinity")
