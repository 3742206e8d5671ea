"""Miniature data sets in the true file formats, small enough to train on in a moment."""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tenfold.experiments.config import TrainConfig


def idx_bytes(array: np.ndarray) -> bytes:
    """`array` (uint8) as an IDX file."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder: Path, train: int = 64, test: int = 40, gzipped: bool = False) -> Path:
    """A data directory whose digits are stripes: class k is bright in rows 2k to 2k + 6."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, count in (("train", train), ("t10k", test)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = rng.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 7] += 180
        for kind, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            if gzipped:
                (raw / f"{prefix}-{kind}.gz").write_bytes(gzip.compress(idx_bytes(array)))
            else:
                (raw / f"{prefix}-{kind}").write_bytes(idx_bytes(array))
    return folder


def write_cifar10(folder: Path, per_batch: int = 8) -> Path:
    """A data directory of random pictures; the batches are pickled as in the original, keys being bytes."""
    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        contents = {
            b"batch_label": name.encode(),
            b"data": rng.integers(0, 256, (per_batch, 3072), dtype=np.uint8),
            b"labels": rng.integers(0, 10, per_batch).tolist(),
        }
        (batches / name).write_bytes(pickle.dumps(contents, protocol=2))
    return folder


def write_cifar100(folder: Path, train: int = 40, test: int = 20) -> Path:
    """A data directory of random pictures with the fine labels 99, 98, …, pickled as in the original."""
    batches = folder / "cifar-100-python"
    batches.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", train), ("test", test)):
        fine = [99 - k % 100 for k in range(count)]
        contents = {
            b"filenames": [b"picture.png"] * count,
            b"batch_label": b"training batch 1 of 1",
            b"fine_labels": fine,
            b"coarse_labels": [label // 5 for label in fine],
            b"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
        }
        (batches / name).write_bytes(pickle.dumps(contents, protocol=2))
    return folder


def write_tiny_imagenet(folder: Path, val: int = 20) -> Path:
    """A data directory with one picture of every class, whose red is the label; its wnids are not sorted."""
    root = folder / "tiny-imagenet-200"
    wnids = [f"n{10_000_199 - label}" for label in range(200)]
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(wnids) + "\n")
    for label, wnid in enumerate(wnids):
        (root / "train" / wnid / "images").mkdir(parents=True)
        write_jpeg(root / "train" / wnid / "images" / f"{wnid}_0.JPEG", (label, 100, 50))
    lines = []
    for number in range(val):
        write_jpeg(root / "val" / "images" / f"val_{number}.JPEG", (9 * number, 100, 50))
        lines.append(f"val_{number}.JPEG\t{wnids[9 * number]}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return folder


def write_jpeg(path: Path, colour: tuple[int, ...] | int, size: tuple[int, int] = (64, 64)) -> None:
    """A picture of one colour, grey if `colour` is a number."""
    mode = "L" if isinstance(colour, int) else "RGB"
    Image.new(mode, size, colour).save(path, "JPEG", quality=95, subsampling=0)


@pytest.fixture(scope="session")
def mnist_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mnist(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def cifar10_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cifar10(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def cifar100_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cifar100(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def tiny_imagenet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_imagenet(tmp_path_factory.mktemp("data"))


@pytest.fixture
def tiny(mnist_folder: Path):
    """Configurations of runs that take a moment: ``tiny(method="dense", epochs=2)``."""

    def make(**given: object) -> TrainConfig:
        few = {"data": "mnist", "data_dir": str(mnist_folder), "epochs": 3, "batch_size": 16, "device": "cpu"}
        if given.get("method", "tucker") == "tucker":
            few["adapt_every"] = 2  # of four steps in an epoch
        return TrainConfig.recipe(**{**few, "lr": 0.02, **given})

    return make


@pytest.fixture(autouse=True)
def _one_thread():
    """The networks here are too small for more, and results then do not depend on the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
