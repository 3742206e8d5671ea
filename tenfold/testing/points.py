"""Points with a prescribed spectrum: well and badly conditioned, with equal and with zero singular values."""

from __future__ import annotations

import math
from enum import Enum
from typing import Any

import torch

from tenfold.linalg import fold, mode_product, qr, unfold
from tenfold.manifolds import LowRankManifold, TreeManifold, rank_tuple

__all__ = ["Spectrum", "checked_spectrum", "other_gauge", "point_with", "rank_one_sum", "ranks_of"]


class Spectrum(Enum):
    """How the singular values of a point are distributed."""

    DECAY = "decay"
    """Geometric, from 1 to the inverse of the condition number."""
    EQUAL = "equal"
    """All the same, where the format allows it."""
    ZERO = "zero"
    """The last one is zero: the tensor has a lower rank, is not on the manifold, and has no tangent space."""

    def __str__(self) -> str:
        return self.value


def checked_spectrum(spectrum: Spectrum | str, condition: float) -> Spectrum:
    """The distribution, by name or itself; ValueError unless it and the condition number make sense."""
    if not 1.0 <= condition < math.inf:
        raise ValueError(f"condition must be a finite number of at least 1, got {condition}")
    return Spectrum(spectrum)


def point_with(
    manifold: LowRankManifold,
    *,
    generator: torch.Generator,
    batch: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float64,
    condition: float = 1.0,
    spectrum: Spectrum = Spectrum.DECAY,
) -> torch.Tensor:
    """A random point whose dense tensor has norm 1 and a prescribed spectrum.

    Where the format is a tensor tree, the spectrum is that of the root: at the edges that leave it the
    condition number is roughly ``condition``, deeper edges inherit it through random bases.
    Otherwise a sum of tensors of rank one with such weights is approximated.

    Parameters
    ----------
    manifold : LowRankManifold
        The manifold.
    generator : torch.Generator
        Source of the numbers.
    batch : tuple of int
        Leading dimensions.
    dtype : torch.dtype
        Type of the result.
    condition : float
        Ratio of the first to the last weight, at least 1.
    spectrum : Spectrum
        The distribution.

    Returns
    -------
    torch.Tensor
        Shape ``(*batch, manifold.size)``.

    Raises
    ------
    ValueError
        If the condition number is below 1 or not finite, or the distribution is not known.
    """
    spectrum = checked_spectrum(spectrum, condition)
    if isinstance(manifold, TreeManifold):
        x = manifold.random(*batch, manifold.size, dtype=dtype, generator=generator)
        root = manifold.tree.root
        factors = list(manifold.unpack_tensor(x))
        children = len(manifold.tree.nodes[root].children)
        factors[root] = _weighted(factors[root], len(batch), children, condition, spectrum)
        x = manifold.pack_point(*factors)
        # Graded rows are easier on every algorithm than the same singular values in other bases.
        return other_gauge(manifold, x, generator) if spectrum is Spectrum.DECAY else x
    return manifold.from_dense(_weighted_sum(manifold, generator, batch, dtype, condition, spectrum))


def _weights(count: int, like: torch.Tensor, condition: float, spectrum: Spectrum) -> torch.Tensor:
    if spectrum is Spectrum.DECAY:
        return condition ** -torch.linspace(0, 1, count).to(like)
    weights = like.new_ones(count)
    if spectrum is Spectrum.ZERO:
        weights[-1] = 0.0
    return weights


def _weighted(
    core: torch.Tensor, lead: int, children: int, condition: float, spectrum: Spectrum
) -> torch.Tensor:
    order = core.ndim - lead
    if spectrum is Spectrum.EQUAL:
        return _level(core, lead, children)
    # An unfolding meets the weights of its own axis from one side and those of the others from the other.
    share = condition**0.5 if children > 1 else condition
    for axis in range(children):
        weights = _weights(core.shape[lead + axis], core, share, spectrum)
        core = mode_product(core, torch.diag(weights), axis, order)
    return _unit(core, lead)


def _unit(tensor: torch.Tensor, lead: int) -> torch.Tensor:
    length = torch.linalg.vector_norm(tensor, dim=tuple(range(lead, tensor.ndim)), keepdim=True)
    return tensor / torch.where(length > 0, length, torch.ones_like(length))


def _level(core: torch.Tensor, lead: int, children: int) -> torch.Tensor:
    """Equal singular values: along every axis for a cube, along the first one otherwise."""
    sizes, order = tuple(core.shape[lead:]), core.ndim - lead
    if order > 1 and children == order and len(set(sizes)) == 1:
        diagonal = torch.zeros_like(core)
        index: tuple[Any, ...] = (..., *(torch.arange(sizes[0]),) * order)
        diagonal[index] = 1.0
        return _unit(diagonal, lead)
    rows = unfold(core, 0, order)
    q, _ = qr(rows.mT if rows.shape[-2] <= rows.shape[-1] else rows)
    level = q.mT if rows.shape[-2] <= rows.shape[-1] else q
    return _unit(fold(level, 0, sizes), lead)


def _weighted_sum(
    manifold: LowRankManifold,
    generator: torch.Generator,
    batch: tuple[int, ...],
    dtype: torch.dtype,
    condition: float,
    spectrum: Spectrum,
) -> torch.Tensor:
    """A weighted sum of tensors of rank one in the format, as many as the largest rank."""
    largest = max(ranks_of(manifold), default=1)
    weights = _weights(largest, torch.empty((), dtype=dtype), condition, spectrum)
    return rank_one_sum(manifold, weights, generator, batch)


def rank_one_sum(
    manifold: LowRankManifold, weights: torch.Tensor, generator: torch.Generator, batch: tuple[int, ...]
) -> torch.Tensor:
    """A dense tensor of norm 1 in the span of the format: a weighted sum of random tensors of rank one.

    Parameters
    ----------
    manifold : LowRankManifold
        Any member of the format.
    weights : torch.Tensor
        One per term, shape ``(terms,)``.
    generator : torch.Generator
        Source of the numbers.
    batch : tuple of int
        Leading dimensions.

    Returns
    -------
    torch.Tensor
        Shape ``(*batch, *manifold.shape)``.
    """
    ones = manifold.with_rank((1,) * len(ranks_of(manifold)))
    terms = ones.random(len(weights), *batch, ones.size, dtype=weights.dtype, generator=generator)
    dense = _unit(ones.to_dense(terms), 1 + len(batch))
    return _unit(torch.tensordot(weights, dense, dims=1), len(batch))


def ranks_of(manifold: LowRankManifold) -> tuple[int, ...]:
    """The ranks as a tuple."""
    return rank_tuple(manifold.rank)


def other_gauge(manifold: LowRankManifold, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The same tensor with other factors.

    Tensor trees have every edge turned by a random orthogonal matrix; other formats are brought
    to the gauge that their truncation leaves.

    Parameters
    ----------
    manifold : LowRankManifold
        The manifold.
    x : torch.Tensor
        Points, shape ``(*batch, size)``.
    generator : torch.Generator
        Source of the orthogonal matrices.

    Returns
    -------
    torch.Tensor
        Shape ``(*batch, size)``.
    """
    if not isinstance(manifold, TreeManifold):
        return manifold.truncation(x).to(manifold.rank)[1]
    tree, batch = manifold.tree, x.shape[:-1]
    factors = list(manifold.unpack_tensor(x))
    for v in range(len(tree.nodes)):
        if v == tree.root:
            continue
        rank = factors[v].shape[-1]
        turn, _ = qr(torch.randn(*batch, rank, rank, dtype=x.dtype, generator=generator))
        parent = tree.parent[v]
        flat = factors[v].reshape(*batch, -1, rank) @ turn
        factors[v] = flat.reshape(factors[v].shape)
        axis = tree.nodes[parent].children.index(v)
        order = factors[parent].ndim - len(batch)
        factors[parent] = mode_product(factors[parent], turn.mT, axis, order)
    return manifold.pack_point(*factors)
