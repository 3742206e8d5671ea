"""IDX files and CIFAR batches, whole and damaged."""

import gzip
import pickle

import numpy as np
import pytest
import torch

from tenfold.experiments.cifar_batches import CIFAR100, read_cifar_batch
from tenfold.experiments.idx import read_idx
from tests.experiments.conftest import idx_bytes


@pytest.mark.parametrize("shape", [(5,), (3, 28, 28), (0, 28, 28)])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_round_trip(tmp_path, shape, suffix):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / f"file{suffix}"
    path.write_bytes(gzip.compress(idx_bytes(array)) if suffix else idx_bytes(array))
    read = read_idx(path)
    assert read.dtype == torch.uint8
    assert np.array_equal(read.numpy(), array)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-1], r"holds 11 bytes of data where its header \(3, 4\) asks for 12"),
        (lambda raw: raw + b"x", "holds 13 bytes"),
        (lambda raw: raw[:7], "ends inside its header"),
        (lambda raw: b"", "is not an IDX file"),
        (lambda raw: b"\0\0\x0d" + raw[3:], "is not an IDX file of unsigned bytes"),  # floats
        (lambda raw: b"<html>", "is not an IDX file"),
    ],
)
def test_idx_damage_is_named(tmp_path, damage, message):
    path = tmp_path / "labels"
    path.write_bytes(damage(idx_bytes(np.zeros((3, 4), dtype=np.uint8))))
    with pytest.raises(ValueError, match=message):
        read_idx(path)


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-9], lambda raw: b"plain", lambda raw: raw[:12] + raw[14:]]
)
def test_idx_broken_gzip_is_named(tmp_path, damage):
    path = tmp_path / "labels.gz"
    path.write_bytes(damage(gzip.compress(idx_bytes(np.arange(200, dtype=np.uint8)))))
    with pytest.raises(ValueError, match=r"labels\.gz is not a complete gzip file"):
        read_idx(path)


def batch(n: int = 4) -> dict[str, object]:
    data = np.random.default_rng(0).integers(0, 256, (n, 3072), dtype=np.uint8)
    return {"data": data, "labels": list(range(n))}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("keys", [str, str.encode])
def test_cifar_batch(tmp_path, protocol, keys):
    contents = batch()
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps({keys(k): v for k, v in contents.items()}, protocol=protocol))
    images, labels = read_cifar_batch(path)
    assert images.shape == (4, 3, 32, 32)
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
    assert np.array_equal(images[2, 1].numpy().ravel(), contents["data"][2, 1024:2048])  # channels are blocks
    assert labels.tolist() == [0, 1, 2, 3]


def test_cifar_batch_of_numpy_1(tmp_path):
    """The original files name numpy's modules as numpy 1 did."""
    raw = pickle.dumps(batch(), protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core.multiarray" in raw
    path = tmp_path / "data_batch_1"
    path.write_bytes(raw)
    assert read_cifar_batch(path)[0].shape == (4, 3, 32, 32)


class _Harm:
    def __reduce__(self):
        return (print, ("harm done",))


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (pickle.dumps(batch())[:-100], "is not a complete CIFAR-10 batch"),
        (b"<html>", "is not a complete CIFAR-10 batch"),
        (b"", "is not a complete CIFAR-10 batch"),
        (pickle.dumps(_Harm()), "asks for builtins.print"),
        (pickle.dumps([1, 2]), "no entries 'data' and 'labels'"),
        (pickle.dumps({"data": np.zeros((4, 3072), np.uint8), "fine_labels": [0] * 4}), "no entries"),
        (pickle.dumps({**batch(), "data": np.zeros((4, 1024), np.uint8)}), r"data uint8\(4, 1024\)"),
        (pickle.dumps({**batch(), "labels": [1, 2]}), r"labels \(2,\)"),
        (pickle.dumps({**batch(), "labels": [0, 1, 10, 2]}), "labels from 0 to 10 where CIFAR-10 has 0 to 9"),
    ],
)
def test_cifar_damage_is_named_and_no_code_runs(tmp_path, capsys, contents, message):
    path = tmp_path / "data_batch_1"
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=message):
        read_cifar_batch(path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (batch(), "is not a CIFAR-100 batch: it has no entries 'data' and 'fine_labels'"),
        ({**batch(), "fine_labels": [0, 100, 1, 2]}, "labels from 0 to 100 where CIFAR-100 has 0 to 99"),
        ({**batch(), "fine_labels": [-1, 0, 1, 2]}, "labels from -1 to 2 where"),
        ({**batch(), "fine_labels": [0]}, r"labels \(1,\) where a CIFAR-100 batch has"),
    ],
)
def test_cifar100_damage_is_named(tmp_path, contents, message):
    path = tmp_path / "train"
    path.write_bytes(pickle.dumps(contents))
    with pytest.raises(ValueError, match=message):
        read_cifar_batch(path, CIFAR100)
