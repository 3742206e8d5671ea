"""Tensors and matrices of fixed rank in Tensor Train form."""

from __future__ import annotations

from collections.abc import Sequence

from tenfold.manifolds.tree import Node, TensorTree
from tenfold.manifolds.tree_manifold import TreeManifold

__all__ = ["TensorTrainManifold"]


class TensorTrainManifold(TreeManifold):
    r"""Tensors of fixed TT rank.

    .. math:: W(i_1, \dots, i_d) = G_1(i_1) G_2(i_2) \cdots G_d(i_d)

    with left-orthogonal cores ``G_1 ... G_{d-1}`` of shape ``(r_{k-1}, n_k, r_k)``; the boundary ranks
    are 1 and carry no axis, so the first core is ``(n_1, r_1)`` and the last ``(r_{d-1}, n_d)``. A packed
    point is ``[G_1, ..., G_d]``, a tangent vector the first-order variations of the cores in the frame of
    Holtz, Rohwedder and Schneider, orthogonal to the cores for ``k < d``.

    With ``rows`` the tensor is a matrix whose row and column modes are paired (a TT matrix or matrix
    product operator): core ``k`` carries mode ``k`` of the rows and mode ``k`` of the columns.

    Parameters
    ----------
    shape : sequence of int
        Shape of the dense tensor; for a TT matrix the row modes followed by the column modes.
    rank : int or sequence of int
        One number for all ranks (lowered where it exceeds what is feasible), or d - 1 numbers, or
        d + 1 numbers with the boundary ones.
    rows : int
        For a TT matrix the number of row modes, half the length of ``shape``; 0 for a tensor.

    Raises
    ------
    ValueError
        If the ranks are not feasible: ``r_k <= min(r_{k-1} n_k, n_{k+1} r_{k+1})``, or ``rows`` is
        neither 0 nor half of the number of modes.

    References
    ----------
    Oseledets, "Tensor-train decomposition", SIAM J. Sci. Comput. 2011. Holtz, Rohwedder and
    Schneider, "On manifolds of tensors of fixed TT-rank", Numer. Math. 2012. Steinlechner, "Riemannian
    optimization for high-dimensional tensor completion", SIAM J. Sci. Comput. 2016.

    Examples
    --------
    >>> from tenfold.manifolds import TensorTrainManifold
    >>> TensorTrainManifold((4, 5, 6), rank=(2, 3)).factor_shapes
    ((4, 2), (2, 5, 3), (3, 6))
    >>> TensorTrainManifold((4, 4, 7, 4), rank=3, rows=2).factor_shapes  # a 16 x 28 matrix
    ((4, 7, 3), (3, 4, 4))
    """

    name = "Tensor Train"

    def __init__(self, shape: Sequence[int], rank: int | Sequence[int], *, rows: int = 0):
        order = len(shape)
        if rows not in (0, order / 2):
            raise ValueError(
                f"rows must be 0 or half the number of modes of the shape {tuple(shape)}, got {rows}"
            )
        length = rows or order
        if length < 1:
            raise ValueError("a Tensor Train needs at least one mode")
        nodes = [
            Node(children=(k - 1,) if k else (), modes=(k, k + rows) if rows else (k,)) for k in range(length)
        ]
        self.rows = rows
        super().__init__(TensorTree(nodes, root=length - 1), shape, rank)

    def _complete(self, rank: int | Sequence[int]) -> Sequence[int]:
        if isinstance(rank, int):
            return self._clipped(rank)
        if len(rank) == len(self.tree.nodes) + 1:
            if rank[0] != 1 or rank[-1] != 1:
                raise ValueError(f"the boundary ranks of a Tensor Train are 1, got {tuple(rank)}")
            return rank[1:-1]
        return rank

    @property
    def factor_names(self) -> tuple[str, ...]:
        """``G1``, ``G2``, ..."""
        return tuple(f"G{k}" for k in range(1, len(self.factor_shapes) + 1))

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", rows={self.rows}" if self.rows else "")
