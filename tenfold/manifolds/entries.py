"""Single entries of a low-rank tensor, without the dense one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tenfold.linalg import unfold
from tenfold.manifolds.base import LowRankManifold
from tenfold.manifolds.tree_manifold import TreeManifold

__all__ = ["Entries"]


@dataclass(frozen=True)
class _Join:
    """One axis of a node: pairs of a row so far and a row of that axis.

    Attributes
    ----------
    axis : int
        The axis of the node's own tensor.
    child : int or None
        The child on that axis; None for a mode.
    width : int
        Number of rows of the axis.
    pairs : torch.Tensor
        The pairs that occur, as ``row so far * width + row of the axis``, ascending.
    """

    axis: int
    child: int | None
    width: int
    pairs: torch.Tensor


class Entries:
    r"""The entries of a low-rank tensor at given positions; differentiable in the point.

    A tree is contracted from the leaves upwards, but only for the parts of an index that occur: a node
    whose subtree carries the modes ``M`` needs one row for every distinct ``index[:, M]``. These are found
    once, when the object is made, and serve every point of this format and shape, at any rank.

    Parameters
    ----------
    manifold : LowRankManifold
        The format and shape; a tensor tree of any rank.
    index : torch.Tensor
        Integers, shape ``(m, d)``: one position in each row. Repetitions are allowed.

    Raises
    ------
    TypeError
        If the manifold is not a tensor tree or the index not of integers.
    ValueError
        If the index is not ``(m, d)``, or a position lies outside the shape.

    Notes
    -----
    Complexity: for a node with ``u`` distinct parts and child ranks ``r`` about ``u r^2`` multiplications.
    Rows are joined by gathering the pairs that occur, or, where all pairs together take less memory than the
    gathered rows would, by one matrix product. The largest array has ``m r`` numbers for Tucker tensors with
    few distinct leading parts, ``m r^2`` in the worst case.

    Examples
    --------
    >>> import torch
    >>> from tenfold.manifolds import TuckerManifold
    >>> from tenfold.manifolds.entries import Entries
    >>> manifold = TuckerManifold((4, 5, 6), rank=2)
    >>> x = manifold.origin(dtype=torch.float64)
    >>> index = torch.tensor([[0, 0, 0], [3, 4, 5]])
    >>> torch.allclose(Entries(manifold, index)(manifold, x), manifold.to_dense(x)[tuple(index.T)])
    True
    """

    def __init__(self, manifold: LowRankManifold, index: torch.Tensor):
        if not isinstance(manifold, TreeManifold):
            raise TypeError(f"entries are read from tensor trees, got {manifold}")
        if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
            raise TypeError(f"index must hold integers, got {index.dtype}")
        shape = torch.tensor(manifold.shape, device=index.device)
        if index.ndim != 2 or index.shape[1] != len(manifold.shape):
            raise ValueError(f"index must be (m, {len(manifold.shape)}), got the shape {tuple(index.shape)}")
        if ((index < 0) | (index >= shape)).any():
            raise ValueError(f"index holds positions outside the shape {manifold.shape}")
        self._tree, self._shape = manifold.tree, manifold.shape
        self._joins: dict[int, list[_Join]] = {}
        rows: dict[int, tuple[torch.Tensor, int]] = {}
        for v in self._tree.bottomup:
            rows[v] = self._plan(v, index.long(), rows)
        self._order = rows[self._tree.root][0]

    def _plan(
        self, v: int, index: torch.Tensor, rows: dict[int, tuple[torch.Tensor, int]]
    ) -> tuple[torch.Tensor, int]:
        """Which row of node ``v`` each position needs, and how many rows there are."""
        node = self._tree.nodes[v]
        first = len(node.children)
        legs: list[tuple[int, int | None, torch.Tensor, int]] = [
            (first + k, None, index[:, mode], self._shape[mode]) for k, mode in enumerate(node.modes)
        ]
        legs += [(axis, child, *rows[child]) for axis, child in enumerate(node.children)]
        here, count, joins = torch.zeros_like(index[:, 0]), 1, []
        for axis, child, there, width in legs:
            pairs, here = torch.unique(here * width + there, return_inverse=True)
            joins.append(_Join(axis, child, width, pairs))
            count = len(pairs)
        self._joins[v] = joins
        return here, count

    def __len__(self) -> int:
        return len(self._order)

    def __call__(self, manifold: LowRankManifold, x: torch.Tensor) -> torch.Tensor:
        """The entries.

        Parameters
        ----------
        manifold : LowRankManifold
            The manifold of the point: the format and shape that the object was made for, at any rank.
        x : torch.Tensor
            Point, shape ``(manifold.size,)``.

        Returns
        -------
        torch.Tensor
            Shape ``(m,)``, in the order of ``index``.

        Raises
        ------
        ValueError
            If the manifold has another format or shape, or the point is a batch.
        """
        if not isinstance(manifold, TreeManifold) or (manifold.tree, manifold.shape) != (
            self._tree,
            self._shape,
        ):
            raise ValueError(f"these entries belong to another format or shape than {manifold}")
        if x.shape != (manifold.size,):
            raise ValueError(f"x must be one point of shape {(manifold.size,)}, got {tuple(x.shape)}")
        factors = manifold.factors(x)
        rows: dict[int, torch.Tensor] = {}
        for v in self._tree.bottomup:
            rows[v] = self._rows(v, factors[v], rows)
        return rows[self._tree.root].reshape(-1)[self._order]

    def _rows(self, v: int, node: torch.Tensor, rows: dict[int, torch.Tensor]) -> torch.Tensor:
        """The rows of node ``v``, shape ``(u, r)``; ``(u,)`` at the root."""
        done: list[int] = []
        out = node.unsqueeze(0)
        for join in self._joins[v]:
            axis = join.axis - sum(other < join.axis for other in done)
            # (u, size of the axis, everything else)
            sizes = (*out.shape[1 : 1 + axis], *out.shape[2 + axis :])
            flat = unfold(out, axis, out.ndim - 1)
            joined = self._mode(flat, join) if join.child is None else _contract(flat, rows[join.child], join)
            out = joined.reshape(-1, *sizes)
            done.append(join.axis)
        return out

    @staticmethod
    def _mode(flat: torch.Tensor, join: _Join) -> torch.Tensor:
        return _select(flat.flatten(0, 1), join.pairs)


def _contract(flat: torch.Tensor, below: torch.Tensor, join: _Join) -> torch.Tensor:
    """Rows ``(u, r, k)`` and rows ``(w, r)`` of a child: the products of the pairs that occur, ``(p, k)``."""
    count, rank, rest = flat.shape
    if count * join.width * rest <= len(join.pairs) * rank * (1 + rest):
        every = (flat.mT.reshape(-1, rank) @ below.mT).reshape(count, rest, len(below)).mT  # (u, w, k)
        return _select(every.reshape(-1, rest), join.pairs)
    so_far = flat.index_select(0, join.pairs // join.width)
    there = below.index_select(0, join.pairs % join.width)
    return (there.unsqueeze(1) @ so_far).squeeze(1)


def _select(rows: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    # As many distinct ascending numbers as there are rows are all of them.
    return rows if len(wanted) == len(rows) else rows.index_select(0, wanted)
