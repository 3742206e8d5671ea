"""The most memory that this process has used."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

_LINUX_STATUS = Path("/proc/self/status")


def peak_memory(device: torch.device) -> int | None:
    """Largest memory use so far, in bytes.

    On a CUDA device the largest sum of its allocated tensors; elsewhere the largest resident set of the whole
    process, interpreter and libraries included. None where the operating system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _LINUX_STATUS.exists():
        # Not getrusage: there a new process on Linux starts with the peak of the one that started it.
        found = re.search(r"^VmHWM:\s+(\d+) kB$", _LINUX_STATUS.read_text(), flags=re.MULTILINE)
        if found:
            return 1024 * int(found[1])
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
