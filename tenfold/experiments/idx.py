"""The IDX files of MNIST: a big-endian header (type, dimensions, sizes) and raw unsigned bytes."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from tenfold.untrusted.stream import read_at_most

_UNSIGNED_BYTE = 0x08
_MOST = 2**28  # bytes of the data; the largest file of MNIST has 47 million
_MOST_AXES = 8
_HEADER = 4 + 4 * _MOST_AXES + 1


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of unsigned bytes, plain or gzipped (`path` ending in ``.gz``).

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    Tensor
        uint8, of the shape that the header names.

    Raises
    ------
    ValueError
        The file is not of this format, is shorter or longer than its header says, or larger than 256 MiB.
        What a gzipped file expands to beyond that is not read.
    OSError
        The file cannot be read.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            raw = read_at_most(file, _MOST + _HEADER)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a complete gzip file ({error}); download it again") from error
    if raw is None:
        raise ValueError(f"{path} holds more than the {_MOST:,} bytes that are read")
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != _UNSIGNED_BYTE or raw[3] == 0:
        raise ValueError(
            f"{path} is not an IDX file of unsigned bytes: it starts with {raw[:4].hex() or 'nothing'}"
        )
    start = 4 + 4 * raw[3]
    if raw[3] > _MOST_AXES:
        raise ValueError(f"{path} claims {raw[3]} axes, more than the {_MOST_AXES} that are read")
    if len(raw) < start:
        raise ValueError(f"{path} ends inside its header; download it again")
    shape = struct.unpack(f">{raw[3]}I", raw[4:start])
    if math.prod(max(n, 1) for n in shape) > _MOST:
        raise ValueError(f"{path} claims the shape {shape}, more than the {_MOST:,} bytes that are read")
    if len(raw) - start != math.prod(shape):
        raise ValueError(
            f"{path} holds {len(raw) - start} bytes of data where its header {shape} asks for "
            f"{math.prod(shape)}; download it again"
        )
    if len(raw) == start:
        return torch.empty(shape, dtype=torch.uint8)
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=start).reshape(shape)
