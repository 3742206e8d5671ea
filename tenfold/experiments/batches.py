"""Batches of a data set, in an order that is a function of the seed and the epoch alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from tenfold.experiments.data import DataSet


def epoch_seed(seed: int, epoch: int, rollbacks: int = 0) -> int:
    """A seed of 63 bits for one epoch; neighbouring seeds and epochs have nothing in common.

    A run that is resumed after epoch k needs no saved generator: epoch k + 1 draws what it would have drawn.
    After every return to a checkpoint draws are others, so that what went wrong need not happen again.
    """
    again = f"/{rollbacks}" if rollbacks else ""
    digest = hashlib.blake2b(f"{seed}/{epoch}{again}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def steps_per_epoch(data: DataSet, batch_size: int) -> int:
    """Number of full batches in the training split; what is left over waits for another epoch's order.

    Raises
    ------
    ValueError
        A batch is larger than the training split.
    """
    if batch_size > len(data.train):
        raise ValueError(
            f"batch_size {batch_size} is more than the {len(data.train)} training images of {data.name}"
        )
    return len(data.train) // batch_size


def training_batches(
    data: DataSet,
    batch_size: int,
    generator: torch.Generator,
    *,
    order: Tensor | None = None,
    start: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled, augmented and normalised batches of one epoch.

    Parameters
    ----------
    data : DataSet
        Its tensors' device is the batches' device.
    batch_size : int
        Images in a batch; an incomplete last batch is left out.
    generator : torch.Generator
        On the CPU; draws the augmentation, and the order where none is given.
    order : Tensor, optional
        Numbers of all training images, int64 of shape (n,), on the CPU.
    start : int
        Batches of that order to leave out.

    Yields
    ------
    images : Tensor
        float32 of shape (batch_size, channels, height, width).
    labels : Tensor
        int64 of shape (batch_size,).
    """
    if order is None:
        order = torch.randperm(len(data.train), generator=generator)
    for step in range(start, steps_per_epoch(data, batch_size)):
        chosen = order[step * batch_size : (step + 1) * batch_size].to(data.train.images.device)
        images = data.train.images[chosen]
        if data.augment is not None:
            images = data.augment(images, generator)
        yield data.normalise(images), data.train.labels[chosen]


def evaluation_batches(data: DataSet, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised batches of the whole test split, in order; the last one may be smaller."""
    for images, labels in zip(
        data.test.images.split(batch_size), data.test.labels.split(batch_size), strict=True
    ):
        yield data.normalise(images), labels
