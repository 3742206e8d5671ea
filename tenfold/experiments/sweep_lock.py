"""One sweep at a time in a folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

_LOCK = ".sweep.lock"
_TAKEN = (errno.EAGAIN, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other sweeps out of `folder` inside the block.

    The lock is one of the operating system on a file in `folder`, which ends with the process, however that
    ends; where the system or the file system has no such locks, nobody is kept out.

    Raises
    ------
    ValueError
        Another sweep is running in `folder`.
    OSError
        The file cannot be created.
    """
    if fcntl is None:
        yield
        return
    path = folder / _LOCK
    descriptor = _open(path)
    while not _is_at(path, descriptor):  # removed by a sweep that ended between the two
        os.close(descriptor)
        descriptor = _open(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is locked: the next one looks whether it is still there
        os.close(descriptor)


def _open(path: Path) -> int:
    """A descriptor of the file, locked if that can be."""
    assert fcntl is not None
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return descriptor
        os.close(descriptor)
        if error.errno in _TAKEN:
            raise ValueError(
                f"another sweep is running in {path.parent}: wait for its end, or choose another --out"
            ) from error
        raise
    return descriptor


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
