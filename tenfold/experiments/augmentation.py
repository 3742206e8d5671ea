"""Random changes to training images that keep their label, whole batches at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def random_crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Shift every image by up to `padding` pixels (black where it moved away) and mirror every second one.

    Parameters
    ----------
    images : Tensor
        Shape (n, channels, height, width), any dtype and device.
    generator : torch.Generator
        On the CPU, so that every device sees the same pictures.
    padding : int
        Largest shift, in pixels.

    Returns
    -------
    Tensor
        As `images`.
    """
    n, channels, height, width = images.shape
    shifts = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator)
    mirrored = torch.rand((n, 1), generator=generator) < 0.5
    rows = torch.arange(height) + shifts[0]  # (n, height)
    columns = torch.arange(width) + shifts[1]  # (n, width)
    columns = torch.where(mirrored, columns.flip(1), columns)
    rows, columns = rows.to(images.device), columns.to(images.device)
    padded = torch.nn.functional.pad(images, (padding, padding, padding, padding))
    which = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[which, channel, rows[:, None, :, None], columns[:, None, None, :]]
