"""Tensors of fixed hierarchical rank on a balanced binary tree."""

from __future__ import annotations

from collections.abc import Sequence

from tenfold.manifolds.tree import Node, TensorTree
from tenfold.manifolds.tree_manifold import TreeManifold

__all__ = ["HierarchicalTuckerManifold"]


class HierarchicalTuckerManifold(TreeManifold):
    """Tensors of fixed hierarchical Tucker rank.

    The modes are halved again and again; every part of the modes has a basis, and the basis of a
    part is made from those of its halves by a transfer tensor of shape ``(r_left, r_right, r)``.
    Storage ``O(d n r + d r^3)``. A packed point holds the tensors of the tree from the root down,
    left before right; the root is a matrix of the two halves' common rank.

    Parameters
    ----------
    shape : sequence of int
        Shape of the dense tensor, at least two modes.
    rank : int or sequence of int
        One number for all ranks (lowered where it exceeds what is feasible), or ``2 d - 3`` numbers:
        that of the two halves at the root, then those of the other parts in packed order.

    Raises
    ------
    ValueError
        If there are fewer than two modes or the ranks are not feasible.

    References
    ----------
    Hackbusch and Kuehn, "A new scheme for the tensor representation", 2009. Grasedyck, "Hierarchical
    singular value decomposition of tensors", SIAM J. Matrix Anal. Appl. 2010. Uschmajew and
    Vandereycken, "The geometry of algorithms using hierarchical tensors", 2013.

    Examples
    --------
    >>> from tenfold.manifolds import HierarchicalTuckerManifold
    >>> HierarchicalTuckerManifold((4, 5, 6, 7), rank=2).factor_shapes
    ((2, 2), (2, 2, 2), (4, 2), (5, 2), (2, 2, 2), (6, 2), (7, 2))
    """

    name = "hierarchical Tucker"

    def __init__(self, shape: Sequence[int], rank: int | Sequence[int]):
        if len(shape) < 2:
            raise ValueError(f"hierarchical Tucker needs at least two modes, got the shape {tuple(shape)}")
        super().__init__(_balanced(len(shape)), shape, rank)

    def _complete(self, rank: int | Sequence[int]) -> Sequence[int]:
        return self._clipped(rank) if isinstance(rank, int) else rank


def _balanced(order: int) -> TensorTree:
    nodes: list[Node] = []

    def grow(modes: range) -> int:
        number = len(nodes)
        nodes.append(Node(modes=(modes[0],)))
        if len(modes) > 1:
            half = (len(modes) + 1) // 2
            nodes[number] = Node(children=(grow(modes[:half]), grow(modes[half:])))
        return number

    grow(range(order))
    halves = nodes[0].children
    others = [(v,) for v in range(1, len(nodes)) if v not in halves]
    return TensorTree(nodes, root=0, ranks=[halves, *others])
