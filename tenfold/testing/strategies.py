"""Hypothesis strategies that draw structure: format, order, sizes, ranks, batch, type, conditioning, seed.

Numbers are never drawn: they follow from the seed, so that examples shrink to a small structure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import geoopt
import torch
from hypothesis import strategies as st

from tenfold.manifolds import (
    FixedRankManifold,
    HierarchicalTuckerManifold,
    LowRankManifold,
    TensorTrainManifold,
    TreeManifold,
    TuckerManifold,
)
from tenfold.testing.kinds import subject_of
from tenfold.testing.points import Spectrum
from tenfold.testing.sample import Sample
from tenfold.testing.subject import Embedding

__all__ = [
    "fixed_rank_manifolds",
    "hierarchical_tucker_manifolds",
    "low_rank_manifolds",
    "partial_tucker_manifolds",
    "ranks",
    "samples",
    "shapes",
    "tensor_train_manifolds",
    "tensor_train_matrix_manifolds",
    "tucker_manifolds",
]

_LONGEST_SIDE = {1: 8, 2: 7, 3: 5, 4: 4, 5: 3, 6: 3}
_LARGEST_TENSOR = 120

Tree = TypeVar("Tree", bound=TreeManifold)


@st.composite
def shapes(
    draw: st.DrawFn, min_order: int = 2, max_order: int = 5, max_size: int = _LARGEST_TENSOR
) -> tuple[int, ...]:
    """Shapes of small tensors, sides of 1 included.

    Parameters
    ----------
    min_order, max_order : int
        Limits on the number of modes, within 1 to 6. Vectors are rare: they have no ranks worth the name.
    max_size : int
        Limit on the number of entries: the dense oracles are cubic in it.
    """
    order = draw(st.integers(max(min_order, min(max_order, 2)), max_order))
    if min_order < 2 < max_order and draw(st.integers(0, 15)) == 15:
        order = min_order
    sides: list[int] = []
    for _ in range(order):
        longest = min(_LONGEST_SIDE[order], max_size // math.prod(sides))
        # Sides of 1 are rare: they take a mode away.
        smallest = 1 if longest < 2 or draw(st.integers(0, 9)) == 9 else 2
        sides.append(draw(st.integers(smallest, longest)))
    return tuple(sides)


@st.composite
def ranks(draw: st.DrawFn, manifold: Tree) -> Tree:
    """A manifold of the same shape and format, at ranks that are 1, as large as possible, or anything.

    Parameters
    ----------
    manifold : TreeManifold
        Any member of the format, for instance at rank 1.
    """
    tree, highest = manifold.tree, manifold.with_rank(manifold.full_rank)._ranks
    kind = draw(st.sampled_from(("any", "any", "any", "ones", "full")))
    if kind == "ones":
        wanted: Sequence[int] = (1,) * len(highest)
    elif kind == "full":
        wanted = highest
    else:
        wanted = [draw(st.integers(1, limit)) for limit in highest]
    return manifold.with_rank(tree.clip(manifold.shape, wanted))


def _drawn(
    make: Callable[[tuple[int, ...]], Tree], sizes: st.SearchStrategy[tuple[int, ...]]
) -> st.SearchStrategy[Tree]:
    return sizes.map(make).flatmap(ranks)


def tucker_manifolds(max_order: int = 5) -> st.SearchStrategy[TuckerManifold]:
    """Tucker manifolds with every mode compressed."""
    return _drawn(lambda shape: TuckerManifold(shape, 1), shapes(1, max_order))


@st.composite
def partial_tucker_manifolds(draw: st.DrawFn, max_order: int = 5) -> TuckerManifold:
    """Tucker manifolds with some modes left uncompressed, but not all."""
    shape = draw(shapes(2, max_order))
    modes = draw(st.sets(st.integers(0, len(shape) - 1), min_size=1, max_size=len(shape) - 1))
    return draw(ranks(TuckerManifold(shape, 1, modes=sorted(modes))))


def fixed_rank_manifolds() -> st.SearchStrategy[FixedRankManifold]:
    """Matrices of fixed rank."""
    return _drawn(lambda shape: FixedRankManifold(shape, 1), shapes(2, 2))


def tensor_train_manifolds(max_order: int = 5) -> st.SearchStrategy[TensorTrainManifold]:
    """Tensor Trains."""
    return _drawn(lambda shape: TensorTrainManifold(shape, 1), shapes(1, max_order))


def tensor_train_matrix_manifolds(max_length: int = 3) -> st.SearchStrategy[TensorTrainManifold]:
    """Tensor Trains of matrices with paired row and column modes; one pair, which has no ranks, is rare."""
    lengths = (*range(2, max_length + 1),) * 6
    return st.sampled_from((*lengths, 1)).flatmap(
        lambda rows: _drawn(
            lambda shape: TensorTrainManifold(shape, 1, rows=rows), shapes(2 * rows, 2 * rows)
        )
    )


def hierarchical_tucker_manifolds(max_order: int = 5) -> st.SearchStrategy[HierarchicalTuckerManifold]:
    """Hierarchical Tucker manifolds."""
    return _drawn(lambda shape: HierarchicalTuckerManifold(shape, 1), shapes(2, max_order))


def low_rank_manifolds() -> st.SearchStrategy[LowRankManifold]:
    """Any format that the library has."""
    return st.one_of(
        tucker_manifolds(),
        partial_tucker_manifolds(),
        fixed_rank_manifolds(),
        tensor_train_manifolds(),
        tensor_train_matrix_manifolds(),
        hierarchical_tucker_manifolds(),
    )


_BATCHES: tuple[tuple[int, ...], ...] = ((3,), (), (1,), (2, 2), (5,))
_CONDITIONS = {torch.float64: (1.0, 10.0, 1e3, 1e5), torch.float32: (1.0, 10.0, 1e2)}


@st.composite
def samples(
    draw: st.DrawFn,
    manifolds: st.SearchStrategy[geoopt.Manifold],
    *,
    batches: Sequence[tuple[int, ...]] = _BATCHES,
    dtypes: Sequence[torch.dtype] = (torch.float64, torch.float32),
    embed: Callable[[geoopt.Manifold], Embedding] | None = None,
    order: int | None = None,
) -> Sample:
    """Examples for checks: a manifold, a batch of points, their conditioning, and a seed.

    Parameters
    ----------
    manifolds : hypothesis strategy
        Of manifolds.
    batches : sequence of tuple of int
        Leading dimensions to choose from. Each example measures as many instances as its batch has members.
    dtypes : sequence of torch.dtype
        Types to choose from.
    embed : callable or None
        A manifold to its dense embedding, if that is not its own.
    order : int or None
        The claimed order of the retraction.
    """
    manifold = draw(manifolds)
    dtype = draw(st.sampled_from(list(dtypes)))
    subject = subject_of(manifold, embed=None if embed is None else embed(manifold), order=order)
    return Sample(
        subject.at(dtype),
        batch=draw(st.sampled_from(list(batches))),
        dtype=dtype,
        seed=draw(st.integers(0, 2**20)),
        condition=draw(st.sampled_from(_CONDITIONS[dtype])),
        spectrum=draw(st.sampled_from((Spectrum.DECAY, Spectrum.DECAY, Spectrum.EQUAL))),
    )
