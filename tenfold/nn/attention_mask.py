"""What attention adds to its scores for keys that are to be ignored."""

from __future__ import annotations

import math

import torch

__all__ = ["added_mask"]


def added_mask(
    q: torch.Tensor, keys: int, attn_mask: torch.Tensor | None, key_padding_mask: torch.Tensor | None
) -> torch.Tensor | None:
    """The sum of both masks.

    Parameters
    ----------
    q : torch.Tensor
        The queries, shape ``(n, num_heads, l, head_dim)``.
    keys : int
        The number ``s`` of keys.
    attn_mask, key_padding_mask : torch.Tensor or None
        As for :meth:`MultiheadAttention.forward`.

    Returns
    -------
    torch.Tensor or None
        Of the type of ``q``, broadcastable to ``(n, num_heads, l, s)``; None if nothing is masked.

    Raises
    ------
    ValueError
        If a mask has another shape, or consists of integers.
    """
    n, heads, length = q.shape[:3]
    mask = None
    if attn_mask is not None:
        shapes = [(length, keys), (n * heads, length, keys)]
        if tuple(attn_mask.shape) not in shapes:
            raise ValueError(f"attn_mask must have a shape of {shapes}, got {tuple(attn_mask.shape)}")
        mask = _numbers("attn_mask", attn_mask, q.dtype)
        mask = mask.unflatten(0, (n, heads)) if mask.ndim == 3 else mask[None, None]
    if key_padding_mask is not None:
        if tuple(key_padding_mask.shape) != (n, keys):
            raise ValueError(
                f"key_padding_mask must have the shape {(n, keys)}, got {tuple(key_padding_mask.shape)}"
            )
        padding = _numbers("key_padding_mask", key_padding_mask, q.dtype)[:, None, None]
        mask = padding if mask is None else mask + padding
    return mask


def _numbers(name: str, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask as numbers that are added to the scores."""
    if mask.is_floating_point():
        return mask.to(dtype)
    if mask.dtype != torch.bool:
        raise ValueError(f"{name} must be boolean or floating, got {mask.dtype}")
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)
