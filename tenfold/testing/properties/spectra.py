"""Singular values of the matricisations that ranks belong to, from the dense tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from tenfold.linalg import svd
from tenfold.manifolds import LowRankManifold, TreeManifold
from tenfold.testing.outcome import Measured
from tenfold.testing.properties.points import length
from tenfold.testing.sample import Sample

__all__ = ["same_spectra", "spectra", "tails"]


def spectra(manifold: LowRankManifold, tensor: torch.Tensor) -> list[torch.Tensor]:
    """Singular values of the matricisations that the ranks belong to, by dense SVDs.

    Formats that are not tensor trees are asked for those of the untruncated tensor.
    """
    if not isinstance(manifold, TreeManifold):
        full, x = manifold.approximate(tensor)
        return list(full.singular_values(x))
    tree, lead = manifold.tree, tensor.ndim - len(manifold.shape)
    found = []
    for group in tree.ranks:
        below = tree.modes_below(group[0])
        above = [mode for mode in range(tree.order) if mode not in below]
        rows = math.prod(manifold.shape[mode] for mode in below)
        matrix = tensor.permute(*range(lead), *(lead + mode for mode in (*below, *above)))
        found.append(svd(matrix.reshape(*tensor.shape[:lead], rows, -1).double())[1])
    return found


def tails(values: torch.Tensor) -> torch.Tensor:
    """``tails[..., j]``: the root of the sum of squares from ``j`` on; the last one is zero."""
    squares = values.double().square().flip(-1).cumsum(-1).flip(-1)
    return torch.cat([squares, squares.new_zeros(*squares.shape[:-1], 1)], dim=-1).sqrt()


def same_spectra(
    s: Sample, what: str, values: Sequence[torch.Tensor], rows: torch.Tensor
) -> Iterator[Measured]:
    """Singular values are those of dense tensors, given as rows; those that are missing are zero."""
    subject = s.low_rank("points of this manifold have no singular values")
    size = length(rows).double().unsqueeze(-1)
    size = torch.where(size > 0, size, torch.ones_like(size))
    for k, (got, want) in enumerate(zip(values, spectra(s.manifold, subject.tensors(rows)), strict=True)):
        count = max(got.shape[-1], want.shape[-1])
        padded = [torch.nn.functional.pad(item.double(), (0, count - item.shape[-1])) for item in (got, want)]
        name = f"singular values of {what}, rank {k}"
        yield s.equal(name, padded[0] / size, padded[1] / size, scale=1.0, condition=s.space.condition)
