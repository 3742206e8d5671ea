"""Who averages the gradient of a parameter, if anybody does."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from tenfold.manifolds import is_low_rank

if TYPE_CHECKING:
    from tenfold.distributed.reducer import ManifoldReducer

__all__ = ["enter", "has_company", "independent", "is_known", "leave", "reducer_of"]

_REDUCERS: Any = WeakTensorKeyDictionary()
"""Weak references to who reduces a parameter; None for parameters that each process trains for itself."""

_OWNED = "_manifold_reducer"
"""Where a parameter keeps its reducer alive, which then goes with the last of its parameters."""


def enter(parameter: torch.Tensor, reducer: ManifoldReducer) -> None:
    """Have a reducer live as long as a parameter, and be found by it.

    Parameters
    ----------
    parameter : torch.Tensor
        Any parameter without a reducer.
    reducer : ManifoldReducer
        Who reduces its gradient from now on.
    """
    _REDUCERS[parameter] = weakref.ref(reducer)
    setattr(parameter, _OWNED, reducer)


def leave(parameter: torch.Tensor) -> None:
    """Let go of the reducer of a parameter.

    Parameters
    ----------
    parameter : torch.Tensor
        Any parameter that has one.
    """
    del _REDUCERS[parameter]
    delattr(parameter, _OWNED)


def reducer_of(parameter: torch.Tensor) -> ManifoldReducer | None:
    """Who reduces the gradient of a parameter; None if nobody does, or this process is alone.

    Parameters
    ----------
    parameter : torch.Tensor
        Any parameter.
    """
    reference: weakref.ref[ManifoldReducer] | None = _REDUCERS.get(parameter)
    return None if reference is None else reference()


def has_company() -> bool:
    """Whether ``torch.distributed`` joins this process with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_known(parameter: torch.Tensor) -> bool:
    """Whether a parameter has a reducer, or has been declared independent."""
    return parameter in _REDUCERS


def independent(module: nn.Module) -> None:
    """Declare that each process trains the low-rank parameters of a module for itself, with ranks of its own.

    Parameters
    ----------
    module : torch.nn.Module
        Any module.

    Raises
    ------
    ValueError
        If one of them has a :class:`ManifoldReducer`; nothing is declared then.
    """
    low_rank = [(name, p) for name, p in module.named_parameters() if is_low_rank(p)]
    for name, p in low_rank:
        if reducer_of(p) is not None:
            raise ValueError(f"the gradient of {name} is averaged: close() its ManifoldReducer first")
    for _, p in low_rank:
        _REDUCERS[p] = None
