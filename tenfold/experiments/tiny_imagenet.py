"""The folder of Tiny-ImageNet: one JPEG file for every image, decoded into one array of bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tenfold.untrusted.stream import read_at_most
from tenfold.untrusted.text import read_text

FOLDER = "tiny-imagenet-200"
CLASSES = 200

_SIDE = 64
_MOST = 2**20  # bytes of a file; the longest, the list of validation images, has 0.4 million
_WNID = re.compile(r"n\d{8}")
_ANNOTATIONS = "val_annotations.txt"

Images = tuple[Tensor, Tensor]
"""uint8 of shape (n, 3, 64, 64), and labels, int64 of shape (n,)."""


def read_tiny_imagenet(folder: Path) -> tuple[Images, Images]:
    """Read the training and the validation images of Tiny-ImageNet.

    Parameters
    ----------
    folder : Path
        Holds ``wnids.txt``, whose line k names class k, ``train/<wnid>/images/*.JPEG``, ``val/images/`` and
        ``val/val_annotations.txt``.

    Returns
    -------
    train, val : tuple of Tensor
        Images, uint8 of shape (n, 3, 64, 64) with grey ones repeated in the three channels, and labels, int64
        of shape (n,), 0 to 199.

    Raises
    ------
    ValueError
        A list or an image is not as it should be; the message names the file. Or Pillow is missing.
    FileNotFoundError
        A file or a folder is missing.
    OSError
        A file cannot be read.
    """
    wnids = _lines(folder / "wnids.txt")
    if len(set(wnids)) != CLASSES or len(wnids) != CLASSES or not all(map(_WNID.fullmatch, wnids)):
        raise ValueError(
            f"{folder / 'wnids.txt'} has {len(wnids)} lines where Tiny-ImageNet has {CLASSES} different "
            "names such as n01443537"
        )
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    return _decoded(_training_files(folder, label_of)), _decoded(_validation_files(folder / "val", label_of))


def _training_files(folder: Path, label_of: dict[str, int]) -> list[tuple[Path, int]]:
    files = []
    for wnid, label in label_of.items():
        of_class = sorted((folder / "train" / wnid / "images").glob("*.JPEG"))
        if not of_class:
            raise FileNotFoundError(
                f"{folder / 'train' / wnid / 'images'} has no *.JPEG, the training images"
            )
        files += [(path, label) for path in of_class]
    return files


def _validation_files(folder: Path, label_of: dict[str, int]) -> list[tuple[Path, int]]:
    files = []
    for number, line in enumerate(_lines(folder / _ANNOTATIONS), start=1):
        name, wnid = [*line.split("\t"), "", ""][:2]
        if not name or Path(name).name != name or wnid not in label_of:
            raise ValueError(
                f"{folder / _ANNOTATIONS}, line {number}: {line[:60]!r} does not begin with the name of a "
                "file and a class of wnids.txt, separated by a tab"
            )
        files.append((folder / "images" / name, label_of[wnid]))
    if not files:
        raise ValueError(f"{folder / _ANNOTATIONS} is empty where it should have a line for every image")
    return files


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, a list of text lines that Tiny-ImageNet comes with")
    return read_text(path, _MOST).splitlines()


def _decoded(files: Sequence[tuple[Path, int]]) -> Images:
    images = torch.empty((len(files), 3, _SIDE, _SIDE), dtype=torch.uint8)
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside of the interpreter's lock
        for image, pixels in zip(images, pool.map(read_picture, (path for path, _ in files)), strict=True):
            image.copy_(pixels)
    return images, torch.tensor([label for _, label in files])


def read_picture(path: Path) -> Tensor:
    """Read one image.

    Parameters
    ----------
    path : Path
        A JPEG file of 64×64 pixels.

    Returns
    -------
    Tensor
        uint8 of shape (3, 64, 64).

    Raises
    ------
    ValueError
        The file is not such an image, or is larger than any of Tiny-ImageNet; or Pillow is missing.
    FileNotFoundError
        There is no such file.
    OSError
        The file cannot be read.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError("decoding JPEG files needs Pillow: pip install 'tenfold[train]'") from error
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, an image that Tiny-ImageNet comes with")
    with path.open("rb") as file:
        raw = read_at_most(file, _MOST)
    if raw is None:
        raise ValueError(f"{path} is larger than {_MOST:,} bytes, which no file of Tiny-ImageNet is")
    try:
        with Image.open(io.BytesIO(raw), formats=["JPEG"]) as image:
            if image.size != (_SIDE, _SIDE):  # known before anything is decoded
                width, height = image.size
                raise ValueError(f"it has {width}×{height} pixels where Tiny-ImageNet has {_SIDE}×{_SIDE}")
            array = np.array(image.convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # foreign bytes make decoders raise anything
        raise ValueError(f"{path} is not an image of Tiny-ImageNet ({error}); unpack it again") from error
    return torch.from_numpy(array).permute(2, 0, 1)
