"""Tensors of all processes together: their means, all of them, or those of process 0."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.distributed as dist

__all__ = ["from_first", "gathered", "mean", "reachable"]


def reachable(device: torch.device, group: dist.ProcessGroup | None) -> torch.device:
    """The device itself if a process group can send from it, otherwise one from which it can.

    NCCL alone does not reach tensors on processors, such as a model that is wrapped before it is moved.

    Parameters
    ----------
    device : torch.device
        Where a tensor is.
    group : torch.distributed.ProcessGroup or None
        The processes; None means all.
    """
    kinds = [entry.partition(":")[0] for entry in dist.get_backend_config(group).split(",")]
    if device.type in kinds:
        return device
    if "cpu" in kinds:
        return torch.device("cpu")
    return torch.device(kinds[0], torch.get_device_module(kinds[0]).current_device())


def mean(tensors: Sequence[torch.Tensor], group: dist.ProcessGroup | None) -> list[torch.Tensor]:
    """Means of tensors over the processes, in one all-reduce per type.

    Parameters
    ----------
    tensors : sequence of torch.Tensor
        Of the same shapes in all processes.
    group : torch.distributed.ProcessGroup or None
        The processes; None means all.

    Returns
    -------
    list of torch.Tensor
        New tensors.
    """
    processes = dist.get_world_size(group)
    means: list[torch.Tensor] = [torch.empty(0)] * len(tensors)
    positions = defaultdict(list)
    for k, tensor in enumerate(tensors):
        positions[tensor.dtype, tensor.device].append(k)
    for (_, device), ks in positions.items():
        flat = torch.cat([tensors[k].detach().reshape(-1) for k in ks]) / processes
        sent = flat.to(reachable(device, group))
        dist.all_reduce(sent, group=group)
        parts = sent.to(device).split([tensors[k].numel() for k in ks])
        for k, part in zip(ks, parts, strict=True):
            means[k] = part.view(tensors[k].shape)
    return means


def gathered(mine: torch.Tensor, group: dist.ProcessGroup | None) -> list[list[int]]:
    """What each process has, process by process.

    Parameters
    ----------
    mine : torch.Tensor
        Integers, shape ``(n,)`` in all processes.
    group : torch.distributed.ProcessGroup or None
        The processes; None means all.
    """
    sent = mine.to(reachable(mine.device, group))
    table = [torch.empty_like(sent) for _ in range(dist.get_world_size(group))]
    dist.all_gather(table, sent, group=group)
    rows: list[list[int]] = torch.stack(table).tolist()
    return rows


def from_first(tensor: torch.Tensor, group: dist.ProcessGroup | None) -> None:
    """Overwrite a tensor by that of process 0.

    Parameters
    ----------
    tensor : torch.Tensor
        Of the same shape in all processes; changed in place.
    group : torch.distributed.ProcessGroup or None
        The processes; None means all.
    """
    source = 0 if group is None else dist.get_global_rank(group, 0)
    sent = tensor.to(reachable(tensor.device, group))
    dist.broadcast(sent, src=source, group=group)
    tensor.copy_(sent)
