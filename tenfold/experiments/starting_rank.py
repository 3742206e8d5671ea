"""The rank at which the factors of a network have a given compression."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tenfold.experiments.loose import layer_class
from tenfold.nn.choice import LOWEST_FRACTION, largest_fraction
from tenfold.nn.formats import tucker_manifold


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
    fraction = largest_fraction(lambda f: stored(f) <= allowed)
    if fraction is None:
        raise ValueError(
            f"compression {compression:g} is out of reach of the method {method!r}: at rank 1 it is "
            f"{1 - stored(LOWEST_FRACTION) / dense:.4f}"
        )
    return fraction
