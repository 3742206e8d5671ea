"""Activations inside of low-rank convolutions: kept, or computed again in the backward pass."""

from __future__ import annotations

from torch import nn

from tenfold.nn.convolution import Convolution
from tenfold.nn.fusion import followers, move, move_back

__all__ = ["recompute_activations"]

_ACTIVATIONS = {
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish),
    *(nn.Sigmoid, nn.Softplus, nn.Tanh),
}
_POOLINGS = {nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d}


def recompute_activations(model: nn.Module, enabled: bool = True, *, inner: bool = True) -> int:
    """Let low-rank convolutions keep less for the backward pass, and compute it again there.

    A Tucker convolution is three convolutions, whose two inner activations are kept beside what a dense
    layer keeps. They are thin (ranks instead of channels) and computed again by all stages but the last.

    Where a pooling follows, alone or after an activation function, it becomes a part of the layer
    (``conv.parts``), and the last stage, which is one product of matrices, is repeated with it: then the
    large output, its activation and the positions of the maxima are not kept either. Call
    :func:`~tenfold.nn.fuse_normalization` before: a normalisation that is a module of its own stands
    between.

    Parameters
    ----------
    model : torch.nn.Module
        Any model; changed in place. What follows what is found as in :func:`~tenfold.nn.fuse_normalization`.
    enabled : bool
        False keeps the activations again, and moves the modules back.
    inner : bool
        False keeps the inner activations, which costs some memory and saves most of the time: only what ends
        with a pooling is repeated.

    Returns
    -------
    int
        Number of low-rank convolutions.

    Notes
    -----
    Results and gradients are the same, and running statistics take in each batch once.
    ``benchmarks/training_speed.py`` measures time and memory.

    Examples
    --------
    >>> import torch, tenfold
    >>> convolution, norm = tenfold.nn.Conv2d(16, 16, 3, rank=4), torch.nn.BatchNorm2d(16)
    >>> model = torch.nn.Sequential(convolution, norm, torch.nn.ReLU(), torch.nn.MaxPool2d(2))
    >>> tenfold.nn.fuse_normalization(model), tenfold.nn.recompute_activations(model)
    (1, 1)
    >>> list(model[0].parts)
    ['norm', 'activation', 'pooling']
    """
    layers = [module for module in model.modules() if isinstance(module, Convolution)]
    for layer in layers:
        layer.recompute = enabled and inner
    if not enabled:
        move_back(model, "activation", "pooling")
        return len(layers)
    for conv, chain in list(followers(model)):
        tail = {"activation": chain[:1], "pooling": chain[1:2]}
        if chain and type(chain[0]) in _POOLINGS:
            tail = {"activation": [], "pooling": chain[:1]}
        elif not (len(chain) > 1 and type(chain[0]) in _ACTIVATIONS and type(chain[1]) in _POOLINGS):
            continue
        if getattr(tail["pooling"][0], "return_indices", False) or conv.parts.keys() > {"norm"}:
            continue
        for slot, modules in tail.items():
            for module in modules:
                move(model, module, conv, slot)
    return len(layers)
