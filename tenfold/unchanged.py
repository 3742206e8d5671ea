"""Loading a model's state all or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from tenfold.manifolds import is_low_rank, move_

__all__ = ["unchanged_on_error"]


@contextmanager
def unchanged_on_error(model: nn.Module) -> Iterator[None]:
    """Put parameters, ranks and buffers back if the block raises.

    ``load_state_dict`` copies layer by layer and raises at the end: a state whose third layer does not fit
    has changed the first two by then.

    Parameters
    ----------
    model : torch.nn.Module
        Any module; a copy of its tensors is kept during the block.

    Yields
    ------
    None
        Nothing.

    Examples
    --------
    >>> import torch, tenfold
    >>> model = torch.nn.Sequential(tenfold.nn.Linear(6, 6, rank=2), torch.nn.Linear(6, 4))
    >>> before = model[0].weight.clone()
    >>> state = {**tenfold.nn.Linear(6, 6, rank=3).state_dict(prefix="0."), "1.weight": torch.zeros(9, 9)}
    >>> try:
    ...     with tenfold.nn.unchanged_on_error(model):
    ...         model.load_state_dict(state)
    ... except RuntimeError:
    ...     print(model[0].rank, torch.equal(model[0].weight, before))
    (2,) True
    """
    kept = {
        name: (
            dict(module._parameters),
            dict(module._buffers),
            module.__dict__.get("_declared"),
        )
        for name, module in model.named_modules()
    }
    tensors = {
        id(tensor): (tensor, tensor.detach().clone(), getattr(tensor, "manifold", None), tensor.requires_grad)
        for parameters, buffers, _ in kept.values()
        for tensor in (*parameters.values(), *buffers.values())
        if tensor is not None
    }
    try:
        yield
    except BaseException:
        for tensor, value, manifold, wanted in tensors.values():
            _put_back(tensor, value, manifold)
            if tensor.is_leaf:
                tensor.requires_grad_(wanted)
        for name, (parameters, buffers, declared) in kept.items():
            module = model.get_submodule(name)
            module._parameters.update(parameters)
            module._buffers.update(buffers)
            if declared is not None:
                module.__dict__["_declared"] = declared
        raise


@torch.no_grad()
def _put_back(tensor: torch.Tensor, value: torch.Tensor, manifold: object) -> None:
    if is_low_rank(tensor) and tensor.manifold is not manifold:
        move_(tensor, manifold, value)  # type: ignore[arg-type]
    else:
        tensor.copy_(value)
