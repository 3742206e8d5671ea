"""Truncation of a tensor tree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from tenfold.linalg import left_singular
from tenfold.manifolds.tree_calculus import Maps, project, triangular_factors
from tenfold.manifolds.truncation import Truncation

if TYPE_CHECKING:
    from tenfold.manifolds.tree_manifold import TreeManifold

__all__ = ["TreeTruncation"]


class TreeTruncation(Truncation):
    """Truncation by the singular vectors of every edge of the untruncated tensor (HOSVD).

    The error is at most the root of the sum of the squared tails (Grasedyck, "Hierarchical singular
    value decomposition of tensors", 2010).

    Parameters
    ----------
    manifold : TreeManifold
        Format and shape of the tensor.
    upper : dict
        ``upper[v] = S_v^T`` for every edge, up to a rotation from the left, shape ``(*batch, rows, r_v)``;
        the matricisation is ``U_v S_v Q_v^T``.
    cut : callable
        Projects every edge on the columns of the given bases, ``(*batch, r_v, new rank)``, and returns
        orthonormal nodes.

    Notes
    -----
    Complexity: a singular value decomposition of every factor.
    """

    def __init__(
        self,
        manifold: TreeManifold,
        upper: Maps,
        cut: Callable[[Maps], list[torch.Tensor]],
    ):
        self._manifold, self._cut = manifold, cut
        self._left: dict[int, torch.Tensor] = {}
        spectra: dict[int, torch.Tensor] = {}
        for v, factor in upper.items():
            self._left[v], spectra[v] = left_singular(factor.mT)
        self.singular_values = tuple(spectra[group[0]] for group in manifold.tree.ranks)

    @classmethod
    def of_nodes(
        cls, manifold: TreeManifold, nodes: Sequence[torch.Tensor], upper: Maps | None = None
    ) -> TreeTruncation:
        """Of the tensor with the given orthonormal nodes, whose triangular factors may be known."""
        tree = manifold.tree
        upper = triangular_factors(tree, nodes) if upper is None else upper
        return cls(manifold, upper, lambda bases: project(tree, nodes, bases))

    def to(self, rank: int | Sequence[int]) -> tuple[TreeManifold, torch.Tensor]:
        manifold, tree = self._manifold, self._manifold.tree
        wanted = (rank,) * len(tree.ranks) if isinstance(rank, int) else tuple(rank)
        available = tuple(values.shape[-1] for values in self.singular_values)
        if len(wanted) != len(available) or any(
            not 1 <= w <= a for w, a in zip(wanted, available, strict=True)
        ):
            raise ValueError(f"cannot truncate {manifold.name} ranks {available} to {wanted}")
        by_edge = tree.edge_ranks(wanted)
        nodes = self._cut({v: left[..., : by_edge[v]] for v, left in self._left.items()})
        feasible = tree.clip(manifold.shape, wanted)
        if feasible != wanted:
            # The product of the other ranks bounds the true rank, so this second cut loses nothing.
            return TreeTruncation.of_nodes(manifold, nodes).to(feasible)
        smaller = manifold.with_rank(wanted)
        return smaller, smaller.pack_point(*nodes)
