"""Tensors of fixed multilinear rank in Tucker form."""

from __future__ import annotations

from collections.abc import Sequence

from tenfold.manifolds.tree import Node, TensorTree
from tenfold.manifolds.tree_manifold import TreeManifold

__all__ = ["TuckerManifold"]


class TuckerManifold(TreeManifold):
    r"""Tensors of fixed multilinear rank.

    .. math:: W = C \times_1 U_1 \cdots \times_d U_d, \qquad U_i^T U_i = I

    with a core ``C`` and one orthonormal factor for every compressed mode; the other modes are full
    and carry no factor at all. A packed point is ``[C, U_1, U_2, ...]``; the axes of the core are the
    compressed modes in order, then the full ones. A tangent vector is ``[dC, D_1, D_2, ...]`` with
    ``U_i^T D_i = 0`` and stands for

    .. math:: \dot C \times_j U_j + \sum_i \mathrm{Ten}_i(Q_i^T) \times_i D_i \times_{j \ne i} U_j,
              \qquad \mathrm{Mat}_i(C)^T = Q_i S_i^T .

    Parameters
    ----------
    shape : sequence of int
        Shape of the dense tensor, at least one mode.
    rank : int or sequence of int
        Rank of each compressed mode; one number stands for all of them.
    modes : sequence of int or None
        The compressed modes; None means all.

    Raises
    ------
    ValueError
        If the modes are not distinct modes of the shape, or if the ranks are not feasible:
        ``r_i <= min(n_i, prod of the other axes of the core)``.

    References
    ----------
    Koch and Lubich, "Dynamical tensor approximation", 2010. Kressner, Steinlechner and
    Vandereycken, "Low-rank tensor completion by Riemannian optimization", 2014. Zangrando et al.,
    "Geometry-aware training of factorized layers in tensor Tucker format", NeurIPS 2024.

    Examples
    --------
    >>> import torch
    >>> from tenfold.manifolds import TuckerManifold
    >>> manifold = TuckerManifold((8, 6, 3, 3), rank=(4, 3), modes=(0, 1))
    >>> point = manifold.random()
    >>> [tuple(factor.shape) for factor in manifold.unpack_tensor(point)]
    [(4, 3, 3, 3), (8, 4), (6, 3)]
    >>> manifold.to_dense(point).shape
    torch.Size([8, 6, 3, 3])
    """

    name = "Tucker"

    def __init__(self, shape: Sequence[int], rank: int | Sequence[int], modes: Sequence[int] | None = None):
        order = len(shape)
        compressed = tuple(range(order)) if modes is None else tuple(modes)
        if sorted(set(compressed)) != list(compressed) or not all(0 <= m < order for m in compressed):
            raise ValueError(f"modes must be increasing modes of the shape {tuple(shape)}, got {modes}")
        if not compressed:
            raise ValueError("a Tucker manifold needs at least one compressed mode")
        leaves = [Node(modes=(m,)) for m in compressed]
        core = Node(
            children=tuple(range(1, len(leaves) + 1)),
            modes=tuple(m for m in range(order) if m not in compressed),
        )
        super().__init__(TensorTree([core, *leaves], root=0), shape, rank)
        self.modes = compressed

    @property
    def factor_names(self) -> tuple[str, ...]:
        """``core``, and ``U0``, ``U1``, ... by the number of the mode."""
        return ("core", *(f"U{mode}" for mode in self.modes))

    def extra_repr(self) -> str:
        partial = "" if len(self.modes) == len(self.shape) else f", modes={self.modes}"
        return super().extra_repr() + partial
