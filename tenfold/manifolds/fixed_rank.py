"""Matrices of fixed rank."""

from __future__ import annotations

from collections.abc import Sequence

from tenfold.manifolds.tree import Node, TensorTree
from tenfold.manifolds.tree_manifold import TreeManifold

__all__ = ["FixedRankManifold"]

_TREE = TensorTree([Node(children=(1, 2)), Node(modes=(0,)), Node(modes=(1,))], root=0, ranks=[(1, 2)])


class FixedRankManifold(TreeManifold):
    r"""Matrices of fixed rank.

    .. math:: W = U S V^T, \qquad U^T U = V^T V = I

    with a full ``r x r`` matrix ``S``. A packed point is ``[S, U, V]``, a tangent vector
    ``[dS, U_p, V_p]`` with ``U^T U_p = V^T V_p = 0``; up to rotations by the orthogonal parts of ``S`` these
    are the ``M, U_p, V_p`` of Vandereycken (2013).

    Parameters
    ----------
    shape : sequence of int
        ``(m, n)``.
    rank : int or sequence of one int
        At most ``min(m, n)``.

    Raises
    ------
    ValueError
        If the shape is not that of a matrix or the rank is not feasible.

    References
    ----------
    Vandereycken, "Low-rank matrix completion by Riemannian optimization", SIAM J. Optim. 2013.

    Examples
    --------
    >>> from tenfold.manifolds import FixedRankManifold
    >>> manifold = FixedRankManifold((8, 6), rank=2)
    >>> manifold.dim
    24
    """

    name = "fixed-rank"

    def __init__(self, shape: Sequence[int], rank: int | Sequence[int]):
        if len(shape) != 2:
            raise ValueError(f"a fixed-rank matrix needs a shape (m, n), got {tuple(shape)}")
        super().__init__(_TREE, shape, rank)

    @property
    def rank(self) -> int:
        """The rank of the matrix."""
        return self._ranks[0]

    @property
    def factor_names(self) -> tuple[str, ...]:
        """``S``, ``U`` and ``V``."""
        return ("S", "U", "V")

    @property
    def full_rank(self) -> int:
        """The smaller side of the matrix."""
        return min(self.shape)
