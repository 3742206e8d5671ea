"""Files of ``torch.save``, checked from end to end before torch reads them."""

from __future__ import annotations

import math
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import torch

from tenfold.untrusted.pickled import Scan, checked_pickle

__all__ = ["load_torch"]

_ITEMSIZE = {
    **{"DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8},
    **{"IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1},
    **{"ComplexDoubleStorage": 16, "ComplexFloatStorage": 8, "UntypedStorage": 1},
}
_MOST_AXES = 64  # more than torch's operations can handle
_LARGEST = 2**62  # entries of a shape whose axes of size 0 count as 1: torch's sizes overflow above


def load_torch(path: Path, what: str = "a file of tensors and plain data") -> Any:
    """What ``torch.save`` wrote, on the CPU, if it is tensors and plain data.

    First the archive is checked: stored uncompressed, sums of all records right, no more bytes claimed than
    the file has. Then its pickle is read with stand-ins, so that every tensor is known to lie in its record.
    Only then ``torch.load(..., weights_only=True)`` allocates.

    Parameters
    ----------
    path : Path
        The file.
    what : str
        What it should be, for the message.

    Returns
    -------
    object
        Plain data with dense tensors in it.

    Raises
    ------
    ValueError
        The file is truncated or corrupt, older than torch 1.6, or holds more than dense tensors and plain
        data. The message names the file and the reason.
    OSError
        The file cannot be read.
    """
    with path.open("rb") as file:
        try:
            _check(file)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, MemoryError):
            raise
        except RuntimeError as error:
            if "allocate" in str(error):  # the checks have shown that all of it is in the file
                raise MemoryError(f"{path} does not fit into memory") from error
            raise ValueError(_refusal(path, what, error)) from error
        except Exception as error:  # foreign bytes make unpicklers raise anything
            raise ValueError(_refusal(path, what, error)) from error


def _refusal(path: Path, what: str, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{path} is truncated or not {what}: {reason}"


def _check(file: IO[bytes]) -> None:
    _check_end(file)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        names = {entry.filename.lower() for entry in entries}  # torch looks them up in either case
        root = entries[0].filename.partition("/")[0] if entries else ""
        if len(names) != len(entries) or any(not name.startswith(f"{root.lower()}/") for name in names):
            raise ValueError("its records are not named as torch names them")
        size = file.seek(0, 2)
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
            raise ValueError("its records are compressed, which torch never does")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError(f"its records claim more than the {size} bytes of the file")
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the record {damaged} is damaged")
        records = {entry.filename: entry.file_size for entry in entries}
        if f"{root}/data.pkl" not in records:
            raise ValueError("it is an archive, but not of torch")
        _Tensors(checked_pickle(archive.read(f"{root}/data.pkl")), f"{root}/data/", records).load()


def _check_end(file: IO[bytes]) -> None:
    """Refuse archives that torch and Python's zipfile could read differently."""
    size = file.seek(0, 2)
    file.seek(-min(size, 98), 2)
    tail = file.read().rjust(98, b"\0")
    if tail[-22:-18] != b"PK\5\6" or tail[-2:] != b"\0\0":
        raise ValueError("it is corrupt, or older than torch 1.6")
    count, length, start = struct.unpack("<HII", tail[-12:-2])
    end = size - 22
    if tail[-42:-38] == b"PK\6\7":  # more than 4 GiB
        (where,) = struct.unpack("<Q", tail[-34:-26])
        count, length, start = struct.unpack("<QQQ", tail[-66:-42])
        end = size - 98
        if where != end:
            raise ValueError("its end points elsewhere")
    if start + length != end or count < 1:
        raise ValueError("its list of records is not where it should be")


class _Storage:
    def __init__(self, size: int, itemsize: int) -> None:
        self.size, self.itemsize = size, itemsize


class _Tensor:
    def __setstate__(self, state: object) -> None:
        raise ValueError("it changes a tensor after making it")


class _Tensors(Scan):
    """Reads the pickle with empty objects in the place of tensors, whose claims are compared with records."""

    def __init__(self, data: bytes, folder: str, records: dict[str, int]) -> None:
        dtypes = {
            name: value
            for name, value in vars(torch).items()
            if isinstance(value, torch.dtype) and name[0] != "q"
        }
        super().__init__(
            data,
            {
                ("collections", "OrderedDict"): OrderedDict,
                ("torch._utils", "_rebuild_tensor_v2"): _tensor,
                ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
                ("torch._utils", "_rebuild_parameter"): _parameter,
                ("torch", "Size"): tuple,
                ("torch", "device"): str,
                ("torch.storage", "UntypedStorage"): 1,
                **{("torch", name): itemsize for name, itemsize in _ITEMSIZE.items()},
                **{("torch", name): dtype for name, dtype in dtypes.items()},
            },
        )
        self._folder, self._records = folder, records

    def persistent_load(self, identity: Any) -> _Storage:
        """The stand-in for a storage."""
        kind, itemsize, key, _, number = identity
        if kind != "storage" or not isinstance(itemsize, int) or not isinstance(key, str):
            raise ValueError("it refers to something other than a storage")
        _require_sizes([number])
        claimed, found = number * itemsize, self._records.get(self._folder + key)
        if claimed != found:
            raise ValueError(f"the storage {key} should have {claimed} bytes, its record has {found}")
        return _Storage(claimed, itemsize)


def _tensor(
    storage: _Storage,
    offset: int,
    size: Any,
    stride: Any,
    requires_grad: bool,
    hooks: Any,
    metadata: Any = None,
) -> _Tensor:
    return _checked(storage, storage.itemsize, offset, size, stride, hooks, metadata)


def _typed_tensor(
    storage: _Storage,
    offset: int,
    size: Any,
    stride: Any,
    requires_grad: bool,
    hooks: Any,
    dtype: torch.dtype,
    metadata: Any = None,
) -> _Tensor:
    return _checked(storage, dtype.itemsize, offset, size, stride, hooks, metadata)


def _parameter(data: _Tensor, requires_grad: bool, hooks: Any) -> _Tensor:
    if not isinstance(data, _Tensor) or hooks:
        raise ValueError("a parameter is made of something else")
    return data


def _checked(
    storage: _Storage, itemsize: int, offset: int, size: Any, stride: Any, hooks: Any, metadata: Any
) -> _Tensor:
    if not isinstance(storage, _Storage) or hooks or metadata:
        raise ValueError("a tensor has hooks, or other than plain storage")
    sizes, strides = tuple(size), tuple(stride)
    _require_sizes([offset, *sizes, *strides])
    if len(sizes) != len(strides) or len(sizes) > _MOST_AXES:
        raise ValueError(f"a tensor has {len(sizes)} sizes and {len(strides)} strides")
    if math.prod(max(n, 1) for n in sizes) > _LARGEST:
        raise ValueError(f"a tensor claims the shape {sizes}")
    number, stored = math.prod(sizes), storage.size // itemsize
    last = offset + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
    if number > stored or (number and last >= stored):
        raise ValueError(f"a tensor claims the shape {sizes}, but only {stored} numbers are there")
    return _Tensor()


def _require_sizes(numbers: list[Any]) -> None:
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("a tensor has a size that is no number of entries")
