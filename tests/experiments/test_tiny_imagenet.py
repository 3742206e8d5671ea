"""A miniature of Tiny-ImageNet's folder, whole and damaged."""

import shutil

import pytest
import torch

from tenfold.experiments.config import TrainConfig
from tenfold.experiments.data import load
from tenfold.experiments.training import train
from tests.experiments.conftest import write_jpeg


@pytest.fixture
def folder(tiny_imagenet_folder, tmp_path):
    """A copy to damage."""
    shutil.copytree(tiny_imagenet_folder, tmp_path / "data")
    return tmp_path / "data"


def test_every_image_has_its_label(tiny_imagenet_folder):
    data = load("tinyimagenet", tiny_imagenet_folder)
    assert data.train.images.shape == (200, 3, 64, 64)
    assert data.test.images.shape == (20, 3, 64, 64)
    assert (data.train.images.dtype, data.train.labels.dtype) == (torch.uint8, torch.int64)
    assert (data.num_classes, data.image_size) == (200, 64)
    assert data.train.labels.tolist() == list(range(200))  # in the order of wnids.txt
    for split in (data.train, data.test):
        red = split.images[:, 0].float().mean((1, 2))
        torch.testing.assert_close(red, split.labels.float(), atol=3.0, rtol=0)  # JPEG is not exact
        assert (split.images[:, 1].float().mean((1, 2)) - 100).abs().max() < 3


def test_crops_move_by_up_to_eight_pixels(tiny_imagenet_folder):
    data = load("tinyimagenet", tiny_imagenet_folder)
    assert data.augment is not None
    white = torch.full((400, 3, 64, 64), 255, dtype=torch.uint8)
    seen = data.augment(white, torch.Generator().manual_seed(0))
    black_rows = (seen[:, 0].amax(2) == 0).sum(1)
    assert black_rows.max() == 8


def test_grey_images_have_three_channels(folder):
    write_jpeg(folder / "tiny-imagenet-200" / "val" / "images" / "val_3.JPEG", 77)
    image = load("tinyimagenet", folder).test.images[3]
    assert image.float().sub(77).abs().max() < 3


def _cut(path):
    path.write_bytes(path.read_bytes()[:300])


DAMAGES = {
    "a truncated image": (
        "val/images/val_7.JPEG",
        _cut,
        r"val_7\.JPEG is not an image of Tiny-ImageNet",
    ),
    "an image of another size": (
        "train/n10000199/images/n10000199_0.JPEG",
        lambda path: write_jpeg(path, (1, 2, 3), (64, 65)),
        r"n10000199_0\.JPEG .*it has 64×65 pixels where Tiny-ImageNet has 64×64",
    ),
    "no JPEG": ("val/images/val_0.JPEG", lambda p: p.write_bytes(b"GIF89a"), r"val_0\.JPEG is not an image"),
    "a missing image": ("val/images/val_2.JPEG", lambda path: path.unlink(), r"val_2\.JPEG is missing"),
    "an empty class": (
        "train/n10000150/images/n10000150_0.JPEG",
        lambda path: path.unlink(),
        r"n10000150/images has no \*\.JPEG",
    ),
    "a missing list": ("val/val_annotations.txt", lambda p: p.unlink(), r"val_annotations\.txt is missing"),
    "an empty list": (
        "val/val_annotations.txt",
        lambda path: path.write_text(""),
        r"val_annotations\.txt is empty",
    ),
    "an unknown class": (
        "val/val_annotations.txt",
        lambda path: path.write_text("val_0.JPEG\tn10000199\nval_1.JPEG\tn99999999\n"),
        r"val_annotations\.txt, line 2: 'val_1\.JPEG\\tn99999999' does not begin with",
    ),
    "a way out of the folder": (
        "val/val_annotations.txt",
        lambda path: path.write_text("../../secret.JPEG\tn10000199\n"),
        "line 1: .* does not begin with the name of a file",
    ),
    "too few classes": (
        "wnids.txt",
        lambda path: path.write_text("n10000199\nn10000198\n"),
        r"wnids\.txt has 2 lines where Tiny-ImageNet has 200 different names",
    ),
    "a class twice": (
        "wnids.txt",
        lambda path: path.write_text("n10000199\n" * 200),
        "200 lines where Tiny-ImageNet has 200 different names",
    ),
    "a file too large": (
        "val/images/val_5.JPEG",
        lambda path: path.write_bytes(path.read_bytes() + bytes(2**20)),
        r"val_5\.JPEG is larger than 1,048,576 bytes",
    ),
    "bytes": ("wnids.txt", lambda path: path.write_bytes(b"\xff\xfe"), r"wnids\.txt is not text in UTF-8"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(folder, damage):
    name, change, message = DAMAGES[damage]
    change(folder / "tiny-imagenet-200" / name)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load("tinyimagenet", folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("data", ["cifar100", "tinyimagenet"])
def test_a_run(data, tmp_path, request):
    """Two steps with the recipe of the data set; 64-pixel images pass through a factored network."""
    folder = request.getfixturevalue({"cifar100": "cifar100_folder"}.get(data, "tiny_imagenet_folder"))
    config = TrainConfig.recipe(
        data=data,
        data_dir=str(folder),
        model="vgg-small",
        epochs=1,
        batch_size=20,
        adapt_every=2,
        device="cpu",
    )
    assert (config.weight_decay, config.tau, config.lr) == (5e-4, 0.06, 0.1)
    run = train(config, tmp_path / "run")
    assert run.last.step == (2 if data == "cifar100" else 10)
    assert run.last.test_loss > 0
