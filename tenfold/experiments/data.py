"""The data sets: images and labels held in memory as bytes, from the files their authors publish."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tenfold.experiments.augmentation import random_crop_and_flip
from tenfold.experiments.cifar_batches import CIFAR100, read_cifar_batch
from tenfold.experiments.idx import read_idx
from tenfold.experiments.tiny_imagenet import CLASSES, FOLDER, read_tiny_imagenet

Augmentation = Callable[[Tensor, torch.Generator], Tensor]

_DIGITS_SIDE = 24  # enlarged from 8, then framed to 28 as the digits of MNIST are

_LAYOUT = {
    "mnist": (
        "MNIST/raw/ with train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
        "t10k-labels-idx1-ubyte (or the same names with .gz), from "
        "https://ossci-datasets.s3.amazonaws.com/mnist/"
    ),
    "cifar10": (
        "cifar-10-batches-py/ with data_batch_1 to data_batch_5 and test_batch, from "
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    ),
    "cifar100": (
        "cifar-100-python/ with train and test, from https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
    ),
    "tinyimagenet": (
        "tiny-imagenet-200/ with wnids.txt, train/ and val/, from "
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    ),
}


@dataclass(frozen=True)
class Split:
    """Images with their labels.

    Parameters
    ----------
    images : Tensor
        uint8 of shape (n, channels, height, width).
    labels : Tensor
        int64 of shape (n,).
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Split:
        """The same images and labels on `device`."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class DataSet:
    """A training and a test split, and how their bytes become the numbers a network sees.

    Parameters
    ----------
    name : str
        As in :func:`load`.
    train, test : Split
        The images.
    mean, std : tuple of float
        Of the training pixels, one per channel, with pixels scaled to [0, 1].
    num_classes : int
        Labels are 0 to ``num_classes - 1``.
    augment : callable, optional
        Applied to the bytes of every training batch: ``augment(images, generator)``.
    """

    name: str
    train: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int = 10
    augment: Augmentation | None = None

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return self.train.images.shape[1]

    @property
    def image_size(self) -> int:
        """Height and width of an image, in pixels."""
        return self.train.images.shape[-1]

    def to(self, device: torch.device | str) -> DataSet:
        """The same data set with its tensors on `device`."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    def normalise(self, images: Tensor) -> Tensor:
        """Bytes to float32 numbers of mean 0 and variance 1 over the training images, channel by channel.

        Parameters
        ----------
        images : Tensor
            uint8 of shape (n, channels, height, width).

        Returns
        -------
        Tensor
            float32 of the same shape.
        """
        mean = torch.tensor(self.mean, device=images.device).reshape(-1, 1, 1)
        std = torch.tensor(self.std, device=images.device).reshape(-1, 1, 1)
        return (images.float() - 255 * mean) / (255 * std)


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> DataSet:
    """Load a data set into memory.

    Parameters
    ----------
    name : {"digits", "mnist", "cifar10", "cifar100", "tinyimagenet"}
        ``"digits"`` comes with scikit-learn: 1,797 handwritten digits, enlarged to 28×28, a stratified fifth
        of them for testing. ``"mnist"`` is read from ``MNIST/raw/``, ``"cifar10"`` from
        ``cifar-10-batches-py/``, ``"cifar100"`` (its 100 fine labels) from ``cifar-100-python/``.
        ``"tinyimagenet"`` is decoded from the JPEG files in ``tiny-imagenet-200/``, 110,000 images in
        1.4 GB; its validation images are those for testing, since labels of its test images are not public.
    data_dir : path, optional
        The folder that holds these folders; the environment variable ``TENFOLD_DATA`` where it is None.

    Returns
    -------
    DataSet
        On the CPU.

    Raises
    ------
    ValueError
        No such data set, no folder given where one is needed, a damaged file, or no test images.
    FileNotFoundError
        A file is missing; the message says which layout is expected and where the original is.
    """
    if name == "digits":
        if data_dir is not None:
            raise ValueError("data_dir has no effect on the data set 'digits', which comes with scikit-learn")
        return _digits()
    readers = {"mnist": _mnist, "cifar10": _cifar10, "cifar100": _cifar100, "tinyimagenet": _tinyimagenet}
    if name not in readers:
        raise ValueError(f"data must be one of digits, {', '.join(readers)}, not {name!r}")
    folder = data_dir if data_dir is not None else os.environ.get("TENFOLD_DATA")
    if not folder:
        raise ValueError(
            f"the data set {name!r} is read from a folder: name it with --data-dir or TENFOLD_DATA"
        )
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"the data directory {folder} does not exist; it should hold {_LAYOUT[name]}")
    data = readers[name](Path(folder))
    if not len(data.test):
        raise ValueError(f"the data set {name!r} in {folder} has no test images")
    return data


def _digits() -> DataSet:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    small = torch.from_numpy(raw.images).float()[:, None] / 16  # (1797, 1, 8, 8) in [0, 1]
    large = torch.nn.functional.interpolate(small, size=_DIGITS_SIDE, mode="bilinear", align_corners=False)
    framed = torch.nn.functional.pad(large, (2, 2, 2, 2))
    images = (255 * framed).round().to(torch.uint8)
    labels = torch.from_numpy(raw.target).long()
    train, test = train_test_split(range(len(labels)), test_size=0.2, stratify=raw.target, random_state=0)
    return DataSet(
        "digits",
        Split(images[train], labels[train]),
        Split(images[test], labels[test]),
        mean=(0.2244,),
        std=(0.3139,),
    )


def _mnist(folder: Path) -> DataSet:
    train, test = (_mnist_split(folder / "MNIST" / "raw", prefix) for prefix in ("train", "t10k"))
    return DataSet("mnist", train, test, mean=(0.1307,), std=(0.3081,))


def _mnist_split(folder: Path, prefix: str) -> Split:
    paths = []
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        plain = folder / f"{prefix}-{kind}"
        candidates = [plain, plain.with_name(plain.name + ".gz")]
        paths.append(_existing(candidates, "mnist"))
    images, labels = (read_idx(path) for path in paths)
    if images.ndim != 3 or images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{paths[0]} and {paths[1]} hold arrays of shape {tuple(images.shape)} and {tuple(labels.shape)} "
            "where MNIST has (n, 28, 28) and (n,)"
        )
    if len(labels) and labels.max() > 9:
        raise ValueError(f"{paths[1]} holds the label {labels.max()} where MNIST has 0 to 9")
    return Split(images[:, None], labels.long())


def _cifar10(folder: Path) -> DataSet:
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    paths = [_existing([folder / "cifar-10-batches-py" / name], "cifar10") for name in names]
    *parts, test = (read_cifar_batch(path) for path in paths)
    train = Split(torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts]))
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    return DataSet("cifar10", train, Split(*test), mean=mean, std=std, augment=random_crop_and_flip)


def _cifar100(folder: Path) -> DataSet:
    paths = [_existing([folder / "cifar-100-python" / name], "cifar100") for name in ("train", "test")]
    train, test = (Split(*read_cifar_batch(path, CIFAR100)) for path in paths)
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    return DataSet(
        "cifar100", train, test, mean, std, num_classes=CIFAR100.classes, augment=random_crop_and_flip
    )


def _tinyimagenet(folder: Path) -> DataSet:
    _existing([folder / FOLDER / "wnids.txt"], "tinyimagenet")
    train, test = (Split(*part) for part in read_tiny_imagenet(folder / FOLDER))
    mean, std = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
    augment = partial(random_crop_and_flip, padding=8)  # an eighth of the side, as for CIFAR
    return DataSet("tinyimagenet", train, test, mean, std, num_classes=CLASSES, augment=augment)


def _existing(candidates: list[Path], name: str) -> Path:
    for path in candidates:
        if path.is_file():
            return path
    raise FileNotFoundError(f"{candidates[0]} is missing; the data directory should hold {_LAYOUT[name]}")
