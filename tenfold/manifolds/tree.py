"""Tensor trees: the shape of a low-rank format, without any numbers.

Tucker, fixed-rank matrices, Tensor Trains and hierarchical Tucker are one construction (Uschmajew
and Vandereycken, "The geometry of algorithms using hierarchical tensors", 2013): a tree of small
tensors in which every node but the root is an orthonormal basis, contracted along the edges. They
differ in the tree alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Node", "TensorTree"]


@dataclass(frozen=True)
class Node:
    """One tensor of the tree.

    Its axes are: one per child in order, one per mode in order, and, except at the root, last the
    one that leads to its parent.

    Attributes
    ----------
    children : tuple of int
        Numbers of the nodes below it.
    modes : tuple of int
        Modes of the dense tensor that it carries.
    """

    children: tuple[int, ...] = ()
    modes: tuple[int, ...] = ()

    @property
    def legs(self) -> int:
        """Number of axes without the one to the parent."""
        return len(self.children) + len(self.modes)


class TensorTree:
    """A rooted tree of nodes, in the order in which their tensors are packed.

    Parameters
    ----------
    nodes : sequence of Node
        Each mode 0, 1, ... appears in exactly one node, each node but the root in exactly one
        list of children.
    root : int
        Number of the root.
    ranks : sequence of tuple of int or None
        The ranks of the format: groups of edges that share a rank, an edge being named by its
        lower node. None means one rank per edge. Edges may share a rank if they belong to the same
        matricisation, as the two edges at a root without other axes do.

    Raises
    ------
    ValueError
        If a mode or a node is missing or occurs twice, a node has no axes, or edges that share a rank belong
        to different matricisations.
    """

    def __init__(self, nodes: Sequence[Node], root: int, ranks: Sequence[tuple[int, ...]] | None = None):
        self.nodes = tuple(nodes)
        self.root = root
        self.order = sum(len(node.modes) for node in self.nodes)
        if sorted(m for node in self.nodes for m in node.modes) != list(range(self.order)):
            raise ValueError(f"the modes of a tensor tree must be 0, 1, ... once each, got {self.nodes}")
        if not all(node.legs for node in self.nodes):
            raise ValueError(f"every node of a tensor tree needs children or modes, got {self.nodes}")
        self.parent = {child: v for v, node in enumerate(self.nodes) for child in node.children}
        self.topdown = tuple(self._descend(root))
        if sorted(self.topdown) != list(range(len(self.nodes))):
            raise ValueError(f"the nodes {self.nodes} with root {root} do not form one tree")
        self.bottomup = self.topdown[::-1]
        edges = [v for v in range(len(self.nodes)) if v != root]
        self.ranks = tuple((v,) for v in edges) if ranks is None else tuple(ranks)
        if sorted(v for group in self.ranks for v in group) != edges:
            raise ValueError(f"the rank groups {self.ranks} must hold each edge of {edges} once")
        for group in self.ranks:
            if len({self._split(v) for v in group}) != 1:
                raise ValueError(f"the edges {group} cannot share a rank: they split the modes differently")
        self.depth = max((self._depth(v) for v in edges), default=0)

    def _descend(self, v: int) -> Iterator[int]:
        yield v
        for child in self.nodes[v].children:
            yield from self._descend(child)

    def _depth(self, v: int) -> int:
        return 0 if v == self.root else 1 + self._depth(self.parent[v])

    def _split(self, v: int) -> frozenset[frozenset[int]]:
        """The two parts of the modes that edge ``v`` separates."""
        below = frozenset(self.modes_below(v))
        return frozenset((below, frozenset(range(self.order)) - below))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TensorTree) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        return self.nodes, self.root, self.ranks

    def modes_below(self, v: int) -> list[int]:
        """Modes of the subtree at ``v``, those of the children first."""
        node = self.nodes[v]
        return [m for c in node.children for m in self.modes_below(c)] + list(node.modes)

    def edge_ranks(self, rank: Sequence[int]) -> dict[int, int]:
        """Rank of every edge from one number per group."""
        return {v: r for group, r in zip(self.ranks, rank, strict=True) for v in group}

    def node_shape(self, v: int, shape: Sequence[int], edge_rank: dict[int, int]) -> tuple[int, ...]:
        """Shape of the tensor at node ``v``."""
        node = self.nodes[v]
        legs = tuple(edge_rank[c] for c in node.children) + tuple(shape[m] for m in node.modes)
        return legs if v == self.root else (*legs, edge_rank[v])

    def size(self, shape: Sequence[int], rank: Sequence[int]) -> int:
        """Stored numbers at feasible ranks."""
        edge_rank = self.edge_ranks(rank)
        return sum(math.prod(self.node_shape(v, shape, edge_rank)) for v in range(len(self.nodes)))

    def limits(self, v: int, shape: Sequence[int], edge_rank: dict[int, int]) -> tuple[int, int]:
        """Largest rank of edge ``v`` that the node below and the node above it allow."""
        parent = self.parent[v]
        below = math.prod(self.node_shape(v, shape, edge_rank)[:-1])
        above = math.prod(self.node_shape(parent, shape, edge_rank)) // edge_rank[v]
        return below, above

    def clip(self, shape: Sequence[int], rank: Sequence[int]) -> tuple[int, ...]:
        """The largest feasible ranks that do not exceed ``rank``.

        A rank is feasible if it exceeds neither the product of the other axes of the node below
        its edge nor that of the node above it (for Tucker: ``r_i <= min(n_i, prod of the other r)``).
        """
        current = list(rank)
        changed = True
        while changed:
            changed = False
            for k, group in enumerate(self.ranks):
                edge_rank = self.edge_ranks(current)
                for v in group:
                    limit = min(self.limits(v, shape, edge_rank))
                    if limit < current[k]:
                        current[k], changed = limit, True
        return tuple(current)
