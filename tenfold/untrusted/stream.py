"""Reading no more than a limit, and allocating no more than there is."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Readable", "read_at_most"]

_CHUNK = 2**20  # read(n) reserves n bytes before it knows how many there are


class Readable(Protocol):
    """An open binary file."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes."""


def read_at_most(file: Readable, most: int) -> bytearray | None:
    """The rest of a file; None if it is longer than `most` bytes."""
    found = bytearray()
    while chunk := file.read(_CHUNK):
        found += chunk
        if len(found) > most:
            return None
    return found
