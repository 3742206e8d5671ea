"""The pickled batches of CIFAR's Python versions, read without letting the pickle run code."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


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

# What numpy needs to rebuild an array, under its names of numpy 1 (as in the original files) and numpy 2.
_HARMLESS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}


# What the unpickler raises on a truncated file or on other bytes.
_DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    TypeError,
)


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no image batch needs")
        return super().find_class(module, name)


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
        The file is truncated, not a pickled batch, or holds arrays of another shape or other labels.
    OSError
        The file cannot be read.
    """
    try:
        batch = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        AttributeError,
        ImportError,
        IndexError,
        TypeError,
    ) as error:
        raise ValueError(
            f"{path} is not a complete {variant.name} batch ({error}); download it again"
        ) from error
    if isinstance(batch, dict):
        batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
    if not isinstance(batch, dict) or not {"data", variant.labels} <= set(batch):
        raise ValueError(
            f"{path} is not a {variant.name} batch: it has no entries 'data' and {variant.labels!r}"
        )
    data, labels = np.asarray(batch["data"]), np.asarray(batch[variant.labels])
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
