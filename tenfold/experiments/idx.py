"""The IDX files of MNIST: a big-endian header (type, dimensions, sizes) and raw unsigned bytes."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from tenfold.untrusted.stream import Readable, read_at_most

_UNSIGNED_BYTE = 0x08
_MOST = 2**28  # bytes of the data; the largest file of MNIST has 47 million
_MOST_AXES = 8
_SURPLUS = 2**20  # bytes too many that are counted for the message


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
            return _read(path, file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a complete gzip file ({error}); download it again") from error


def _read(path: Path, file: Readable) -> Tensor:
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] != _UNSIGNED_BYTE or start[3] == 0:
        raise ValueError(
            f"{path} is not an IDX file of unsigned bytes: it starts with {start.hex() or 'nothing'}"
        )
    if start[3] > _MOST_AXES:
        raise ValueError(f"{path} claims {start[3]} axes, more than the {_MOST_AXES} that are read")
    sizes = file.read(4 * start[3])
    if len(sizes) < 4 * start[3]:
        raise ValueError(f"{path} ends inside its header; download it again")
    shape = struct.unpack(f">{start[3]}I", sizes)
    if math.prod(max(n, 1) for n in shape) > _MOST:
        raise ValueError(f"{path} claims the shape {shape}, more than the {_MOST:,} bytes that are read")
    wanted = math.prod(shape)
    data = read_at_most(file, wanted + _SURPLUS)
    if data is None or len(data) != wanted:
        found = f"more than {wanted + _SURPLUS}" if data is None else len(data)
        raise ValueError(
            f"{path} holds {found} bytes of data where its header {shape} asks for {wanted}; "
            "download it again"
        )
    return torch.frombuffer(data, dtype=torch.uint8).reshape(shape) if data else torch.empty(shape).byte()
