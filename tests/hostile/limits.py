"""The most memory that reading a file may take."""

import contextlib
import re
import resource
from pathlib import Path

HEADROOM = 2**28
"""Bytes of address space beyond what the process has when it begins to read; files here take a few KiB."""


@contextlib.contextmanager
def headroom(size=HEADROOM):
    """Let any allocation fail that takes the address space of the process beyond what it has and `size`."""
    status = Path("/proc/self/status")
    if not status.exists():
        yield
        return
    present = 1024 * int(re.search(r"^VmSize:\s+(\d+) kB$", status.read_text(), flags=re.MULTILINE)[1])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (present + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def ran_out(error):
    """Whether an exception comes from an allocation that was refused."""
    while error is not None:
        if isinstance(error, MemoryError) or re.search("allocate|out of memory", str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
