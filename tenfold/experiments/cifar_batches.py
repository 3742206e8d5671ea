"""The pickled batches of CIFAR's Python versions, read without importing or calling anything they name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tenfold.untrusted.pickled import Scan, checked_pickle
from tenfold.untrusted.stream import read_at_most

_MOST = 2**28  # bytes of a batch; those of CIFAR-10 have 31 million, the larger one of CIFAR-100 155 million
_TYPES = {"u1": np.uint8, "i4": np.int32, "i8": np.int64}


class Variant(NamedTuple):
    """One of the two data sets in this format.

    Parameters
    ----------
    name : str
        In messages.
    labels : str
        Entry of a batch that holds the labels.
    classes : int
        Labels are 0 to ``classes - 1``.
    """

    name: str
    labels: str
    classes: int


CIFAR10 = Variant("CIFAR-10", "labels", 10)
CIFAR100 = Variant("CIFAR-100", "fine_labels", 100)


def read_cifar_batch(path: Path, variant: Variant = CIFAR10) -> tuple[Tensor, Tensor]:
    """Read one batch file of CIFAR-10 or CIFAR-100.

    Parameters
    ----------
    path : Path
        ``data_batch_1`` to ``data_batch_5`` or ``test_batch``; ``train`` or ``test`` of CIFAR-100.
    variant : Variant
        Which of the two data sets; of CIFAR-100 the labels are the fine ones.

    Returns
    -------
    images : Tensor
        uint8 of shape (n, 3, 32, 32).
    labels : Tensor
        int64 of shape (n,), 0 to ``variant.classes - 1``.

    Raises
    ------
    ValueError
        The file is truncated, not a pickled batch, larger than any batch, or holds arrays of another shape.
    OSError
        The file cannot be read.
    """
    with path.open("rb") as file:
        raw = read_at_most(file, _MOST)
    if raw is None:
        raise ValueError(f"{path} is larger than {_MOST:,} bytes, which no {variant.name} batch is")
    try:
        batch = Scan(checked_pickle(bytes(raw)), _NAMES, encoding="latin1").load()
    except MemoryError:
        raise
    except Exception as error:  # foreign bytes make unpicklers raise anything
        raise ValueError(
            f"{path} is not a complete {variant.name} batch ({error}); download it again"
        ) from error
    if isinstance(batch, dict):
        batch = {key.decode("latin1") if isinstance(key, bytes) else key: v for key, v in batch.items()}
    if not isinstance(batch, dict) or not {"data", variant.labels} <= set(batch):
        raise ValueError(
            f"{path} is not a {variant.name} batch: it has no entries 'data' and {variant.labels!r}"
        )
    try:
        data, labels = _array(batch["data"]), _array(batch[variant.labels])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072 or labels.shape != data.shape[:1]:
        raise ValueError(
            f"{path}: data {data.dtype}{data.shape} and labels {labels.shape} where a {variant.name} batch "
            "has uint8 (n, 3072) and (n,)"
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < variant.classes:
        raise ValueError(
            f"{path}: labels from {labels.min()} to {labels.max()} where {variant.name} has "
            f"0 to {variant.classes - 1}"
        )
    images = torch.from_numpy(np.ascontiguousarray(data)).reshape(-1, 3, 32, 32)
    return images, torch.from_numpy(labels.astype(np.int64))


class _Array:
    """Takes the place of an array that is being unpickled, and makes it when its bytes are there."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_columns, raw = state
        self.value = _filled(raw, dtype, shape, "F" if by_columns else "C")


class _Type:
    def __init__(self, code: str, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", "|"):
            raise ValueError(f"an array has the byte order {state[1]!r}")


def _filled(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(dtype, _Type) or dtype.code not in _TYPES:
        raise ValueError("an array holds something other than whole numbers")
    kind = np.dtype(_TYPES[dtype.code])
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    sizes = tuple(shape)
    if any(type(n) is not int or n < 0 for n in sizes) or not isinstance(raw, (bytes, bytearray)):
        raise ValueError("an array has a size or data that it cannot have")
    if math.prod(sizes) * kind.itemsize != len(raw) or len(sizes) > 2:
        raise ValueError(f"an array claims the shape {sizes}, but {len(raw)} bytes are there")
    return np.frombuffer(bytearray(raw), kind).reshape(sizes, order="F" if order == "F" else "C")


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any, *_: object) -> _Array:
    array = _Array()
    array.value = _filled(raw, dtype, shape, order)
    return array


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


# What numpy's pickles name, under its names of numpy 1 (as in the original files) and numpy 2.
_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): lambda *_: _Array() for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
}


def _array(entry: Any) -> np.ndarray:
    """An array of the batch, or the list of whole numbers that labels are in the original files."""
    if isinstance(entry, _Array) and entry.value is not None:
        return entry.value
    if isinstance(entry, list) and all(type(n) is int and abs(n) < 2**31 for n in entry):
        return np.array(entry, dtype=np.int64)
    raise ValueError(f"an entry is {type(entry).__name__}, neither an array nor a list of whole numbers")
