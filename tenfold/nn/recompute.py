"""Activations inside of low-rank convolutions: kept, or computed again in the backward pass."""

from __future__ import annotations

from torch import nn

from tenfold.nn.convolution import Convolution

__all__ = ["recompute_activations"]


def recompute_activations(model: nn.Module, enabled: bool = True) -> int:
    """Let low-rank convolutions keep their input only, and compute what lies between their stages again.

    A Tucker convolution is three convolutions, whose two inner activations are kept for the backward pass
    beside what a dense layer keeps. Both are thin (ranks instead of channels) and cheap to compute again: all
    stages but the last are repeated.

    Parameters
    ----------
    model : torch.nn.Module
        Any model; changed in place.
    enabled : bool
        False keeps the activations again.

    Returns
    -------
    int
        Number of convolutions concerned.

    Notes
    -----
    Results and gradients are the same. ``benchmarks/training_speed.py`` measures time and memory.
    """
    layers = [module for module in model.modules() if isinstance(module, Convolution)]
    for layer in layers:
        layer.recompute = enabled
    return len(layers)
