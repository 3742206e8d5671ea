"""A miniature MNIST in its true format, so that a command takes a moment."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 64), ("t10k", 20)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = struct.pack(">II", 0x801, count)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
    return folder


@pytest.fixture
def quick(data_folder: Path) -> Callable[..., list[str]]:
    """The arguments of a run that takes a moment, in front of others."""

    def arguments(*more: str) -> list[str]:
        start = [
            "train",
            "--data",
            "mnist",
            "--data-dir",
            str(data_folder),
            "--batch-size",
            "16",
            "--epochs",
            "2",
        ]
        # Four steps in an epoch, of which some must decide on ranks.
        beat = [] if "dense" in more or "--adapt-every" in more else ["--adapt-every", "2"]
        return [*start, "--device", "cpu", *beat, *more]

    return arguments


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
