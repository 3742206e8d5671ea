"""Which adapters take part, and merging them into the weights."""

from __future__ import annotations

import torch
from torch import nn

from tenfold.nn.adapters.lookup import adapted_layers, adapter_of, check_known

__all__ = ["activate", "deactivate", "merge", "unmerge"]


def activate(model: nn.Module, *names: str, share: float = 1.0) -> None:
    """Let adapters take part in the forward pass, with a factor; the others stay as they are.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    *names : str
        Names of the adapters; none means all.
    share : float
        Factor of the updates, beside each one's own scale; 0 switches them off.

    Raises
    ------
    ValueError
        If there is no such adapter, or the model is merged.
    """
    wanted = check_known(model, names)
    layers = adapted_layers(model).values()
    if any(layer.merged for layer in layers):
        raise ValueError("the adapters are merged into the weights: unmerge the model first")
    for layer in layers:
        for name in wanted:
            if name in layer.adapters:
                adapter_of(layer, name).share = float(share)


def deactivate(model: nn.Module, *names: str) -> None:
    """Leave adapters out of the forward pass; arguments and errors as for :func:`activate`.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    *names : str
        Names of the adapters; none means all.
    """
    activate(model, *names, share=0.0)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Put all active updates into the weights, so that the model is as fast as without them.

    A copy of each frozen weight is kept; ``state_dict`` holds the frozen weights and the updates, merged or
    not. :func:`unadapt` on a merged model leaves a plain dense one.

    Parameters
    ----------
    model : torch.nn.Module
        The model; one that is merged stays so.

    Raises
    ------
    ValueError
        If the model has no adapters, or a sum is not finite; the model is then unchanged.
    """
    check_known(model, ())
    layers = adapted_layers(model)
    for name, layer in layers.items():
        if not layer.merged and not torch.isfinite(layer.merged_weight()).all():
            raise ValueError(f"the merged weight of {name!r} would hold NaN or infinity")
    for layer in layers.values():
        layer.merge()


def unmerge(model: nn.Module) -> None:
    """Put the frozen weights back, bit for bit.

    Parameters
    ----------
    model : torch.nn.Module
        The model; one that is not merged stays so.

    Raises
    ------
    ValueError
        If the model has no adapters.
    """
    check_known(model, ())
    for layer in adapted_layers(model).values():
        layer.unmerge()
