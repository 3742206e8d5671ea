"""How the dense weight of a torch layer is read as the tensor of a manifold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

__all__ = ["Layout", "tensorized"]


@dataclass(frozen=True)
class Layout:
    """A permutation of the weight's axes followed by a reshape; missing rows are zero.

    Attributes
    ----------
    weight : tuple of int
        Shape of the dense weight in torch's layout.
    tensor : tuple of int
        Shape of the manifold's tensor. It may have more rows than the weight (its axis 0), as many as the
        sizes make; they are filled with zeros and never read.
    order : tuple of int
        The axes of the weight in the order in which the tensor has them.
    """

    weight: tuple[int, ...]
    tensor: tuple[int, ...]
    order: tuple[int, ...]

    @classmethod
    def plain(cls, weight: Sequence[int], tensor: Sequence[int] | None = None) -> Layout:
        """Without a permutation."""
        return cls(tuple(weight), tuple(weight if tensor is None else tensor), tuple(range(len(weight))))

    @classmethod
    def permuted(cls, weight: Sequence[int], order: Sequence[int]) -> Layout:
        """Without a reshape."""
        return cls(tuple(weight), tuple(weight[axis] for axis in order), tuple(order))

    @property
    def rows(self) -> int:
        """Number of rows of the tensor, those without meaning included."""
        return math.prod(self.tensor) // math.prod(self.weight[1:])

    def to_tensor(self, weight: torch.Tensor) -> torch.Tensor:
        """Shape ``weight`` to shape ``tensor``."""
        missing = self.rows - self.weight[0]
        if missing:
            weight = F.pad(weight, (0, 0) * (weight.ndim - 1) + (0, missing))
        return weight.permute(self.order).reshape(self.tensor)

    def to_weight(self, tensor: torch.Tensor) -> torch.Tensor:
        """Shape ``tensor`` to shape ``weight``; the inverse of :meth:`to_tensor`."""
        sizes = (self.rows, *self.weight[1:])
        inverse = [self.order.index(axis) for axis in range(len(self.order))]
        weight = tensor.reshape([sizes[axis] for axis in self.order]).permute(inverse)
        return weight[: self.weight[0]]


def tensorized(rows: int, columns: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the row and column features of a Tensor Train matrix.

    There are as many cores as make the average one carry about 64 pairs of a row and a column, and at least
    two; the sizes are as equal as the divisors allow.

    Parameters
    ----------
    rows, columns : int
        Sides of the matrix.

    Returns
    -------
    tuple of tuple of int
        Two shapes of equal length with the products ``rows`` and ``columns``.

    Examples
    --------
    >>> from tenfold.nn.layout import tensorized
    >>> tensorized(512, 768)
    ((8, 8, 8), (12, 8, 8))
    """
    cores = max(2, round(math.log(rows * columns, 64)))
    # Small with large, so that the cores have similar sizes.
    return balanced(rows, cores), balanced(columns, cores)[::-1]


def balanced(number: int, count: int) -> tuple[int, ...]:
    """The factorisation into ``count`` factors with the smallest sum, ascending."""
    if count == 1:
        return (number,)
    best: tuple[int, ...] = ()
    for first in range(1, round(number ** (1 / count)) + 1):
        if number % first == 0:
            found = (first, *balanced(number // first, count - 1))
            if not best or sum(found) < sum(best):
                best = found
    return tuple(sorted(best))
