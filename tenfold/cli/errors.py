"""Errors as one line on stderr and an exit code."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_LONGEST = 2000  # characters of a message, which may quote a file
_EXTRAS = ("sklearn", "matplotlib", "rich", "yaml")


def exit_code_of(action: Callable[[], int]) -> int:
    """Run `action`; turn what a user can mend into one line on stderr and the exit code 2, Ctrl-C into 130.

    With the environment variable ``TENFOLD_DEBUG`` set, errors keep their traceback.
    """
    try:
        return action()
    except KeyboardInterrupt:
        return INTERRUPTED
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS or os.environ.get("TENFOLD_DEBUG"):
            raise
        complain(f"{error.name} is not installed: pip install 'tenfold[train]'")
    except (ValueError, OSError, MemoryError) as error:
        if os.environ.get("TENFOLD_DEBUG"):
            raise
        complain(str(error) or "there is not enough memory")
    return USER_ERROR


def write_out_what_cannot_be_shown() -> None:
    """Let characters that the terminal does not have be written as ``\\xd7``, not be an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def complain(message: str) -> None:
    """Print `message` to stderr as one line of limited length, control characters written out."""
    line = " ".join(message.split())
    line = line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    print("tenfold:", line, file=sys.stderr, flush=True)


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C inside the block, so that a second one does not spoil the answer to the first."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals arrive in the main thread, and only there can their handlers be set
        return
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
