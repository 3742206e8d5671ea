"""Files that are either the old one or the complete new one, never half of it."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)  # what file systems say that cannot sync a folder


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to, and rename it to `path` on success.

    Whatever ends the block early (an error, Ctrl-C) removes the temporary file and leaves `path` as it was.
    The contents are on the disk before the rename, and the rename is before the block is left, so that `path`
    is whole after a loss of power, too. What a killed process left behind is removed by the next one that
    writes to `path`; processes are looked for on this machine, so only one machine at a time may write to it.

    Parameters
    ----------
    path : Path
        The file to create or to replace; its folder must exist.

    Yields
    ------
    Path
        The name to write to, with the suffix of `path`.

    Raises
    ------
    OSError
        The file cannot be written, because the disk is full or for another reason; it names `path`. Errors of
        writers that hide the one of the operating system (``torch.save``, safetensors) are translated.
    KeyboardInterrupt
        Ctrl-C was pressed in the block, even where the writer made another error of it (``torch.save``).
    """
    handled_before = sys.exc_info()[1]
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    _remove_leftovers(path)
    try:
        yield temporary
        _sync_file(temporary)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except Exception as error:
        chain = list(_chain(error, handled_before))
        if any(isinstance(link, KeyboardInterrupt) for link in chain):
            raise KeyboardInterrupt from error
        reason = _reason(chain, temporary)
        if reason is None:
            raise
        raise OSError(reason, os.strerror(reason), str(path)) from error
    finally:
        with suppress(OSError):  # a folder that has become read-only must not hide the first error
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, replacing what was there in one step."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files for `path` whose writers are not alive."""
    name = re.compile(rf"\.{re.escape(path.stem)}\.(\d+){re.escape(path.suffix)}")
    with suppress(OSError):  # the folder may be missing or closed to us, which the writer will find out
        for entry in list(path.parent.iterdir()):
            found = name.fullmatch(entry.name)
            if found and not _is_alive(int(found[1])):
                entry.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    if os.name != "posix":
        return True  # there is no asking there without ending the process
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # folders cannot be opened there
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _chain(error: BaseException, handled_before: BaseException | None) -> Iterator[BaseException]:
    """`error` and what it comes of, the latest first, without what was being handled before."""
    link: BaseException | None = error
    while link is not None and link is not handled_before:
        yield link
        link = link.__cause__ or link.__context__


def _reason(chain: list[BaseException], temporary: Path) -> int | None:
    """Number of the operating system's error behind the first of `chain`, if it is about `temporary`."""
    error = chain[0]
    if isinstance(error, OSError):
        about = error.filename is None or Path(os.fsdecode(error.filename)) == temporary
        return error.errno if about else None
    if isinstance(error, RuntimeError):
        for link in chain:
            if isinstance(link, OSError) and link.errno is not None:
                return link.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None
