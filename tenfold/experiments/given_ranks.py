"""Ranks that are given layer by layer, in the notation ``conv2=5x3,fc1=4x4,fc2=3x3``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tenfold.untrusted.values import brief

__all__ = ["parse_ranks", "ranks_of_layers"]

_ENTRY = re.compile(r"([\w.]+)=([1-9]\d{0,8}(?:x[1-9]\d{0,8})*)", re.ASCII)


def parse_ranks(text: str) -> dict[str, int | tuple[int, ...]]:
    """Read the notation: a name and a number, or one number for each rank of the layer, with x between.

    A number alone is lowered to what is feasible, several have to be.

    Raises
    ------
    ValueError
        The text is something else, or names a layer twice.
    """
    ranks: dict[str, int | tuple[int, ...]] = {}
    for part in text.split(","):
        entry = _ENTRY.fullmatch(part.strip())
        if entry is None:
            raise ValueError(
                f"ranks must be given as conv2=5x3,fc1=4x4, a name and whole numbers of at least 1 for each "
                f"layer, not {brief(text)}"
            )
        name, numbers = entry.groups()
        if name in ranks:
            raise ValueError(f"ranks has the layer {name!r} twice")
        each = tuple(map(int, numbers.split("x")))
        ranks[name] = each if len(each) > 1 else each[0]
    return ranks


def ranks_of_layers(text: str, layers: Sequence[str]) -> dict[str, int | tuple[int, ...]]:
    """The ranks of these layers, in their order.

    Raises
    ------
    ValueError
        The text is not in the notation, or names other layers than these.
    """
    ranks = parse_ranks(text)
    if odd := sorted(ranks.keys() ^ set(layers)):
        raise ValueError(
            f"ranks must be given for the layers {', '.join(layers)}: {odd[0]!r} is missing or unknown"
        )
    return {name: ranks[name] for name in layers}
