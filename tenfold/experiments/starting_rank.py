"""The rank at which the factors of a network have a given compression."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tenfold.experiments.loose import layer_class
from tenfold.nn.formats import tucker_manifold

_HALVINGS = 40


def stored_numel(method: str, shape: Sequence[int], rank: float | int) -> int:
    """Numbers in the factors of one weight of such a shape, stored by `method` at `rank`."""
    if method in ("tucker", "loose-tucker"):
        return tucker_manifold(shape, rank, (0, 1)).size
    layer = layer_class(method, len(shape))
    return sum(math.prod(s) for s in layer.factor_shapes(shape, layer.start_rank(shape, rank)))


def rank_for_compression(method: str, shapes: Sequence[Sequence[int]], compression: float) -> float:
    """The largest fraction of the full rank, the same in all weights, at which they have a compression.

    Ranks are whole numbers, so that the compression reached is a little above the one asked for.

    Parameters
    ----------
    method : str
        ``"tucker"`` or one of the loose methods.
    shapes : sequence of sequence of int
        Shapes of the dense weights.
    compression : float
        ``1 - stored / dense`` over all of them together, in [0, 1).

    Raises
    ------
    ValueError
        Rank 1 everywhere stores more than that.
    """
    dense = sum(math.prod(shape) for shape in shapes)

    def stored(fraction: float) -> int:
        return sum(stored_numel(method, shape, fraction) for shape in shapes)

    allowed = (1 - compression) * dense
    low, high = 2.0**-_HALVINGS, 1.0
    if stored(low) > allowed:
        raise ValueError(
            f"compression {compression:g} is out of reach of the method {method!r}: at rank 1 it is "
            f"{1 - stored(low) / dense:.4f}"
        )
    if stored(high) <= allowed:
        return high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if stored(middle) <= allowed else (low, middle)
    return low
