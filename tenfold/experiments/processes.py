"""The processes that torchrun has started for one training."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tenfold.distributed import DistributedDataParallel, shutdown
from tenfold.manifolds import is_low_rank

TIMEOUT = 600.0
"""Seconds that processes wait for one another unless told otherwise."""

_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LOCAL = "LOCAL_RANK"
_RESTARTS = "TORCHELASTIC_RESTART_COUNT"


@dataclass(frozen=True)
class Processes:
    """This process among those of a run.

    Parameters
    ----------
    number : int
        Its number; process 0 writes the files.
    count : int
        How many there are.
    """

    number: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is process 0."""
        return self.number == 0

    def part(self, tensor: Tensor) -> Tensor:
        """This process's share of a joint batch, equal shares in the order of the processes."""
        size = len(tensor) // self.count
        return tensor[self.number * size : (self.number + 1) * size]

    def check_batch_size(self, batch_size: int) -> None:
        """Refuse a joint batch that cannot be shared out evenly.

        Raises
        ------
        ValueError
            `batch_size` is no multiple of the number of processes.
        """
        if batch_size % self.count:
            raise ValueError(f"batch_size {batch_size} cannot be shared out to {self.count} processes evenly")

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes; `tensor` itself is changed."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over the processes, a new tensor."""
        return self.sum(tensor / self.count) if self.count > 1 else tensor

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the running statistics of process 0, which are the ones that are saved."""
        if self.count > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.count > 1:
            dist.barrier()

    def wrapped(self, model: nn.Module) -> nn.Module:
        """`model` with gradients that are means over the processes.

        On GPUs its batch normalisation sees the joint batch; elsewhere each process its part.
        """
        if self.count == 1:
            return model
        device = next(model.parameters()).device
        if device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        wrapper: Any = nn.parallel.DistributedDataParallel
        if any(is_low_rank(p) for p in model.parameters()):
            wrapper = DistributedDataParallel
        wrapped: nn.Module = wrapper(model, device_ids=[device.index] if device.type == "cuda" else None)
        return wrapped


def launched() -> bool:
    """Whether torchrun, or something like it, has started this process as one of several."""
    return all(name in os.environ for name in _LAUNCHED) and int(os.environ["WORLD_SIZE"]) > 1


def restarted() -> bool:
    """Whether torchrun has started this run again, after a process had died or their number had changed."""
    return launched() and int(os.environ.get(_RESTARTS, "0")) > 0


def leads() -> bool:
    """Whether this process speaks for all: the only one, or process 0 of those that were launched."""
    return not launched() or int(os.environ["RANK"]) == 0


def forget_launch() -> None:
    """Make this process one of its own, for work that it does alone on the GPU that torchrun meant for it."""
    if _LOCAL in os.environ and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ[_LOCAL]) % torch.cuda.device_count())
    for name in (*_LAUNCHED, _LOCAL):
        os.environ.pop(name, None)


@contextmanager
def joined(device: str, timeout: float) -> Iterator[Processes]:
    """Join the processes of this run, if there are several, and part again at the end.

    Parameters
    ----------
    device : str
        The device of the run: NCCL joins GPUs, gloo everything else.
    timeout : float
        Seconds after which a process that waits for one that has died or hangs gives up.

    Yields
    ------
    Processes
        A single one, unless :func:`launched`.
    """
    if not launched():
        yield Processes()
        return
    gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if gpu:
        torch.cuda.set_device(int(os.environ.get(_LOCAL, "0")))
    patience = datetime.timedelta(seconds=timeout)
    store, number, count = next(dist.rendezvous("env://", timeout=patience))
    # torchrun may keep its store when it starts processes again, with the addresses of those that died.
    store = dist.PrefixStore(f"attempt {os.environ.get(_RESTARTS, '0')}", store)
    dist.init_process_group(
        "nccl" if gpu else "gloo", store=store, rank=number, world_size=count, timeout=patience
    )
    try:
        yield Processes(number, count)
    except BaseException:
        shutdown(wait=False)
        raise
    shutdown()
