"""The forward pass of a run, and how good the network is on the test images."""

from __future__ import annotations

import contextlib
from itertools import islice

import torch
from torch import Tensor, nn

from tenfold.experiments.batches import evaluation_batches
from tenfold.experiments.data import DataSet
from tenfold.experiments.processes import Processes

_BATCH = 500


def logits_of(model: nn.Module, images: Tensor, *, amp: bool = False) -> Tensor:
    """What `model` says about a batch of normalised images, in float32.

    Images are laid out channels last, which the convolutions of every method run faster in.

    Parameters
    ----------
    model : nn.Module
        On the device of `images`.
    images : Tensor
        Shape (n, channels, height, width).
    amp : bool
        Run the network in bfloat16 autocast.
    """
    kind = images.device.type
    with torch.autocast(kind, torch.bfloat16) if amp else contextlib.nullcontext():
        logits: Tensor = model(images.contiguous(memory_format=torch.channels_last))
    return logits.float()


def evaluate(
    model: nn.Module, data: DataSet, *, amp: bool = False, processes: Processes | None = None
) -> tuple[float, float]:
    """Mean cross entropy (in nats) and fraction of right answers of `model` on the test split.

    Parameters
    ----------
    model : nn.Module
        On the device of `data`; left in the mode it was in.
    data : DataSet
        Its test split is used.
    amp : bool
        Run the network in bfloat16 autocast.
    processes : Processes, optional
        Those that share the work; each takes a part of the batches, and all get the answer.
    """
    processes = processes or Processes()
    was_training = model.training
    model.eval()
    loss = torch.zeros((), device=data.test.labels.device, dtype=torch.float64)
    right = torch.zeros((), device=data.test.labels.device, dtype=torch.int64)
    with torch.no_grad():
        batches = evaluation_batches(data, _BATCH)
        for images, labels in islice(batches, processes.number, None, processes.count):
            logits = logits_of(model, images, amp=amp)
            loss += nn.functional.cross_entropy(logits, labels, reduction="sum")
            right += (logits.argmax(dim=1) == labels).sum()
    model.train(was_training)
    loss, right = processes.sum(loss), processes.sum(right)
    return loss.item() / len(data.test), right.item() / len(data.test)
