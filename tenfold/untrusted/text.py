"""Text and JSON of limited size and depth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tenfold.untrusted.stream import read_at_most

__all__ = ["SMALL_FILE", "parse_json", "read_text"]

SMALL_FILE = 2**20
"""Bytes of the largest configuration that is read."""
_LARGE_FILE = 2**28  # the results of a long sweep take a few MiB


def read_text(path: Path, most: int = _LARGE_FILE) -> str:
    """The contents of a UTF-8 file.

    Parameters
    ----------
    path : Path
        The file.
    most : int
        Bytes above which it is not read.

    Raises
    ------
    ValueError
        It is larger, or not UTF-8.
    OSError
        It cannot be read.
    """
    with path.open("rb") as file:
        raw = read_at_most(file, most)
    if raw is None:
        raise ValueError(f"{path} is larger than the {most:,} bytes that are read of such a file")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from error


def parse_json(text: str) -> Any:
    """Plain data from JSON.

    Raises
    ------
    ValueError
        It is not JSON, nested too deep, or has a number with thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deep") from error
