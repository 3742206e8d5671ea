"""Norms that hold wherever their value does."""

from __future__ import annotations

import torch

__all__ = ["vector_norm"]


def vector_norm(
    tensor: torch.Tensor, dim: int | tuple[int, ...] = -1, *, keepdim: bool = False
) -> torch.Tensor:
    """Euclidean norm whose squares neither overflow nor underflow; differentiable.

    In float32 a plain sum of squares is infinite from entries of 1e19 on and zero below 1e-23. Here it is
    taken of entries divided by the largest one.

    Parameters
    ----------
    tensor : torch.Tensor
        Any shape, floating point.
    dim : int or tuple of int
        The dimensions of a vector, not empty.
    keepdim : bool
        Keep them with size 1.

    Returns
    -------
    torch.Tensor
        The norms. NaN and infinity stay what they are.

    Notes
    -----
    Complexity: two passes over the tensor and one copy of it. No synchronisation with the host.
    """
    limits = torch.finfo(tensor.dtype)
    largest = torch.linalg.vector_norm(tensor.detach(), torch.inf, dim=dim, keepdim=True)
    scale = largest.clamp(min=limits.tiny, max=limits.max)
    length = torch.linalg.vector_norm(tensor / scale, dim=dim, keepdim=True) * scale
    return length if keepdim else length.squeeze(dim)
