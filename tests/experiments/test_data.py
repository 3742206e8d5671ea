import os
from pathlib import Path

import pytest
import torch

from tenfold.experiments.data import load
from tests.experiments.conftest import write_cifar10, write_mnist

needs_data = pytest.mark.skipif(
    not os.environ.get("TENFOLD_DATA"), reason="TENFOLD_DATA does not name a folder with MNIST and CIFAR-10"
)


def test_digits():
    data = load("digits")
    assert data.train.images.shape == (1437, 1, 28, 28)
    assert data.test.images.shape == (360, 1, 28, 28)
    assert (data.in_channels, data.image_size, data.num_classes) == (1, 28, 10)
    counts = data.test.labels.bincount()
    assert counts.min() >= 34  # stratified: a tenth of 360 each
    assert counts.max() <= 38
    seen = data.normalise(data.train.images)
    assert abs(seen.mean()) < 1e-3
    assert abs(seen.std() - 1) < 1e-3


def test_digits_are_split_the_same_way_every_time():
    one, two = load("digits"), load("digits")
    assert torch.equal(one.test.images, two.test.images)
    assert torch.equal(one.train.labels, two.train.labels)
    both = torch.cat([one.train.images, one.test.images]).flatten(1)
    assert len(both) == 1797
    assert len(both.unique(dim=0)) >= 1797 - 1  # no picture on both sides


@pytest.mark.parametrize("gzipped", [False, True])
def test_mnist(tmp_path, gzipped):
    data = load("mnist", write_mnist(tmp_path, train=30, test=20, gzipped=gzipped))
    assert data.train.images.shape == (30, 1, 28, 28)
    assert data.test.labels.tolist() == [*range(10)] * 2
    assert data.augment is None
    assert data.train.images[3, 0, 6:13].float().mean() > data.train.images[3, 0, 13:].float().mean() + 100


def test_cifar10(cifar10_folder):
    data = load("cifar10", cifar10_folder)
    assert data.train.images.shape == (40, 3, 32, 32)
    assert len(data.test) == 8
    assert data.augment is not None


def test_cifar100(cifar100_folder):
    data = load("cifar100", cifar100_folder)
    assert data.train.images.shape == (40, 3, 32, 32)
    assert data.test.images.shape == (20, 3, 32, 32)
    assert data.num_classes == 100
    assert data.train.labels.tolist() == list(range(99, 59, -1))  # the fine ones
    assert data.augment is not None


def test_the_folder_may_come_from_the_environment(mnist_folder, monkeypatch):
    monkeypatch.setenv("TENFOLD_DATA", str(mnist_folder))
    assert len(load("mnist").train) == 64


def test_normalise_is_the_affine_map_of_the_pixels(cifar10_folder):
    data = load("cifar10", cifar10_folder)
    got = data.normalise(data.train.images[:2])
    expected = (data.train.images[:2].double() / 255 - torch.tensor(data.mean).double().view(3, 1, 1)) / (
        torch.tensor(data.std).double().view(3, 1, 1)
    )
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("mnist", "MNIST/raw/.*ossci-datasets"),
        ("cifar10", "cifar-10-batches-py/.*toronto.edu"),
        ("cifar100", "cifar-100-python/.*toronto.edu"),
        ("tinyimagenet", "tiny-imagenet-200/.*stanford.edu"),
    ],
)
def test_a_missing_folder_says_the_layout_and_the_source(tmp_path, monkeypatch, name, layout):
    monkeypatch.delenv("TENFOLD_DATA", raising=False)
    with pytest.raises(ValueError, match="--data-dir or TENFOLD_DATA"):
        load(name)
    with pytest.raises(FileNotFoundError, match=f"nowhere does not exist; it should hold {layout}"):
        load(name, tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=f"is missing; .* should hold {layout}") as caught:
        load(name, tmp_path)
    assert "\n" not in str(caught.value)


def test_one_missing_file_is_named(tmp_path):
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match="data_batch_3 is missing"):
        load("cifar10", tmp_path)


def test_labels_that_do_not_match_the_images(tmp_path):
    raw = write_mnist(tmp_path) / "MNIST" / "raw"
    (raw / "train-labels-idx1-ubyte").write_bytes((raw / "t10k-labels-idx1-ubyte").read_bytes())
    with pytest.raises(ValueError, match=r"shape \(64, 28, 28\) and \(40,\)"):
        load("mnist", tmp_path)


def test_unknown_data_and_idle_arguments(tmp_path):
    with pytest.raises(ValueError, match="not 'svhn'"):
        load("svhn", tmp_path)
    with pytest.raises(ValueError, match="no effect on the data set 'digits'"):
        load("digits", tmp_path)


@pytest.mark.data
@needs_data
@pytest.mark.parametrize(
    ("name", "folder", "train", "test", "size"),
    [
        ("mnist", "MNIST", 60000, 10000, 28),
        ("cifar10", "cifar-10-batches-py", 50000, 10000, 32),
        ("cifar100", "cifar-100-python", 50000, 10000, 32),
        ("tinyimagenet", "tiny-imagenet-200", 100000, 10000, 64),
    ],
)
def test_the_real_thing(name, folder, train, test, size):
    if name not in ("mnist", "cifar10") and not (Path(os.environ["TENFOLD_DATA"]) / folder).is_dir():
        pytest.skip(f"TENFOLD_DATA has no {folder}")
    data = load(name)
    assert (len(data.train), len(data.test), data.image_size) == (train, test, size)
    pixels = data.train.images[::10].float() / 255
    torch.testing.assert_close(pixels.mean((0, 2, 3)), torch.tensor(data.mean), atol=0.01, rtol=0)
    torch.testing.assert_close(pixels.std((0, 2, 3)), torch.tensor(data.std), atol=0.01, rtol=0)


def test_a_data_set_without_test_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the data set 'mnist' in .* has no test images"):
        load("mnist", write_mnist(tmp_path, test=0))
