"""Tensors that come from outside, in state dictionaries."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["check_tensor"]


def check_tensor(
    name: str,
    value: object,
    shape: Sequence[int] | None = None,
    like: torch.Tensor | None = None,
) -> torch.Tensor:
    """`value`, if it is an ordinary tensor: dense, in memory, and as large as it claims.

    Parameters
    ----------
    name : str
        What it is, for the message.
    value : object
        Anything.
    shape : sequence of int, optional
        The only shape allowed.
    like : Tensor, optional
        A tensor whose type it must have.

    Returns
    -------
    Tensor
        `value`.

    Raises
    ------
    ValueError
        It is no tensor; sparse, quantised, nested or on the meta device; its shape is larger than its storage
        (axes with stride 0); or shape or type are others.
    """
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} must be a tensor, not {type(value).__name__}")
    if value.layout != torch.strided or value.is_quantized or value.is_nested:
        raise ValueError(f"{name} must be a dense tensor, not a sparse, quantised or nested one")
    if shape is not None and tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} has the shape {tuple(value.shape)} instead of {tuple(shape)}")
    if like is not None and value.dtype != like.dtype:
        raise ValueError(f"{name} is of {value.dtype} instead of {like.dtype}")
    if value.is_meta:
        if like is not None and like.is_meta:
            return value
        raise ValueError(f"{name} is on the meta device and holds no numbers")
    stored = value.untyped_storage().nbytes() // value.element_size()
    if value.numel() > stored:
        raise ValueError(f"{name} claims the shape {tuple(value.shape)}, but only {stored} numbers are there")
    return value
