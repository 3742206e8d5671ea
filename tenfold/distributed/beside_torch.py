"""How a reducer gets along with torch's ``DistributedDataParallel`` and hooks."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import nn

from tenfold.manifolds import is_low_rank

__all__ = ["low_rank_names", "without_holding"]


def low_rank_names(module: nn.Module) -> set[str]:
    """All names under which torch's ``DistributedDataParallel`` looks for low-rank parameters.

    Those of the module itself are looked for as ``"weight"`` and as ``".weight"``, tied ones in every place.

    Parameters
    ----------
    module : torch.nn.Module
        What is to be wrapped.
    """
    names = {
        f"{prefix}.{name}"
        for prefix, part in module.named_modules(remove_duplicate=False)
        for name, p in part.named_parameters(recurse=False, remove_duplicate=False)
        if is_low_rank(p)
    }
    return names | {name.removeprefix(".") for name in names}


def without_holding(method: Callable[[torch.Tensor], None]) -> Callable[[torch.Tensor], None]:
    """A bound method as a hook that does not keep its object alive.

    torch hides hooks from the garbage collector; a cycle through one would never be collected.

    Parameters
    ----------
    method : callable
        A bound method; when its object is gone the hook does nothing.
    """
    reference = weakref.WeakMethod(method)

    def hook(tensor: torch.Tensor) -> None:
        alive = reference()
        if alive is not None:
            alive(tensor)

    return hook
