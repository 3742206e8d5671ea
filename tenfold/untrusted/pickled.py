"""Pickles: looked at opcode by opcode, then read with stand-ins for everything that they name."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Mapping
from typing import Any

__all__ = ["Scan", "checked_pickle"]

_MEMO = ("PUT", "BINPUT", "LONG_BINPUT")


class Scan(pickle.Unpickler):
    """An unpickler that knows the names it is given, and no others.

    Parameters
    ----------
    data : bytes
        What :func:`checked_pickle` let pass.
    names : mapping
        ``(module, name)`` and the object that stands for it.
    **options
        As for ``pickle.Unpickler``.
    """

    def __init__(self, data: bytes, names: Mapping[tuple[str, str], Any], **options: Any):
        super().__init__(io.BytesIO(data), **options)
        self._names = names

    def find_class(self, module: str, name: str) -> Any:
        """The object that stands for a name; nothing is imported."""
        if (module, name) not in self._names:
            raise ValueError(f"it asks for {module}.{name}, which is not admitted")
        return self._names[module, name]


def checked_pickle(data: bytes) -> bytes:
    """`data`, if it is one pickle whose opcodes make Python's unpickler allocate no more than its length.

    The unpickler reserves memory for the length that an opcode claims, and for a memo as long as the
    largest index into it, before it looks at the data.

    Raises
    ------
    ValueError
        A length or an index is out of proportion, or the data is truncated or no pickle.
    """
    end = 0
    for opcode, argument, position in pickletools.genops(data):
        number = argument if isinstance(argument, int) else 0
        if opcode.name in _MEMO and number > len(data):
            raise ValueError(f"it numbers {number} objects in {len(data)} bytes")
        if opcode.name == "FRAME" and number > len(data):
            raise ValueError(f"it claims a frame of {number} bytes in {len(data)}")
        if opcode.name.startswith("EXT"):
            raise ValueError("it asks for objects by the numbers of an extension registry")
        end = (position or 0) + 1
    if end != len(data):
        raise ValueError(f"{len(data) - end} bytes follow its end")
    return data
