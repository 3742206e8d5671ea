"""The end of a training in several processes."""

from __future__ import annotations

import gc
import time

import torch.distributed as dist

__all__ = ["shutdown"]

_LET_GO = 0.2  # seconds


def shutdown(*, wait: bool = True) -> None:
    """Wait for all processes, and destroy the process group without hanging.

    gloo's threads let go of the tensors of a collective operation a moment after it has returned, and need
    the interpreter for that; a group that is destroyed in that moment waits for them while it holds the
    interpreter, for ever. ``DistributedDataParallel`` objects destroy it when they are collected.

    Parameters
    ----------
    wait : bool
        False leaves without the others, after an error.

    Raises
    ------
    RuntimeError
        If another process has died.

    Notes
    -----
    Without a process group it does nothing.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    try:
        if wait:
            dist.barrier()
    finally:
        time.sleep(_LET_GO)
        gc.collect()
        dist.destroy_process_group()
