r"""``x + xi`` of a tensor tree, ready to be truncated, without its core of twice the ranks.

In the bases :math:`[U_v \; V_v]` with :math:`D_v = U_v N_v + V_v R_v` the core of ``x + xi`` consists of
blocks, one of the old size and one for every edge at the root; all others are zero:

.. math:: \bar C = C + \dot C + \sum_v E_v \times_v N_v, \qquad F_v = E_v \times_v R_v,

where ``E_v = env[v]`` has orthonormal rows. So the unfolding at edge ``v`` has the triangular factor of

.. math::

    \begin{pmatrix} \bar C_{(v)} & F_{w(v)} \\ R_v E_{v(v)} & 0 \end{pmatrix}
    = \begin{pmatrix} O & T^T \\ R_v & 0 \end{pmatrix} Q^T, \qquad O = \bar C_{(v)} E_{v(v)}^T,

with the triangular factor ``T`` of the remaining rows :math:`(\bar C_{(v)} - O E_{v(v)} \;\; F_{w(v)})`:
half as many as the unfolding has, and no longer.

``V_v`` comes from a QR decomposition of :math:`(I - U_v U_v^T) D_v`. Where that matrix has dependent
columns, some columns of ``V_v`` are arbitrary and need not be perpendicular to ``U_v``. They are never met
without ``R_v``, and :math:`V_v R_v` is perpendicular to rounding: the spectra are those in orthonormal bases.
The nodes of the result are made orthonormal at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tenfold.linalg import mode_product, qr, triangular_factor, unfold
from tenfold.manifolds.tree import TensorTree
from tenfold.manifolds.tree_calculus import (
    Frame,
    Maps,
    Nodes,
    add_product,
    lift,
    matrix,
    order_of,
    right,
    some,
    unmatrix,
)

__all__ = ["MovedTree", "moved"]


@dataclass(frozen=True)
class MovedTree:
    """``x + xi`` in the bases of both.

    Attributes
    ----------
    tree : TensorTree
        The tree.
    nodes : list of torch.Tensor
        The nodes ``[U_v V_v]`` of at most twice the ranks; at the root the first block of the core.
    env : dict
        As in :class:`~tenfold.manifolds.tree_calculus.Frame`.
    factor : dict
        ``factor[v] = R_v``, upper triangular, shape ``(*batch, new directions, r_v)``.
    """

    tree: TensorTree
    nodes: list[torch.Tensor]
    env: Maps
    factor: Maps

    def triangular_factors(self) -> dict[int, torch.Tensor]:
        """As ``tree_calculus.triangular_factors``, up to rotations from the left.

        Complexity: for every edge at the root a QR without Q of ``r`` columns, and products; below,
        one of ``2 r`` columns per edge.
        """
        tree, upper = self.tree, self._root_factors()
        for v in tree.topdown[1:]:
            if tree.nodes[v].children:
                center = right(tree, v, self.nodes[v], upper[v].mT)
                for axis, w in enumerate(tree.nodes[v].children):
                    upper[w] = triangular_factor(unfold(center, axis, order_of(tree, v)).mT)
        return upper

    def _root_factors(self) -> dict[int, torch.Tensor]:
        root, order = self.tree.root, order_of(self.tree, self.tree.root)
        children = self.tree.nodes[root].children
        beside = {w: mode_product(self.env[w], self.factor[w], a, order) for a, w in enumerate(children)}
        upper: dict[int, torch.Tensor] = {}
        for axis, v in enumerate(children):
            first, known = (unfold(t, axis, order) for t in (self.nodes[root], self.env[v]))
            others = [unfold(beside[w], axis, order) for w in children if w != v]
            r = self.factor[v]
            columns = first.shape[-1] + sum(other.shape[-1] for other in others)
            if columns < first.shape[-2] + r.shape[-2]:
                # No more singular values than columns.
                last = unfold(beside[v], axis, order)
                last = torch.nn.functional.pad(last, (0, columns - last.shape[-1]))
                upper[v] = triangular_factor(torch.cat([torch.cat([first, *others], -1), last], -2).mT)
                continue
            overlap = first @ known.mT
            rest = torch.cat([add_product(first, overlap, known, -1.0), *others], -1)
            t = triangular_factor(rest.mT)
            last = torch.nn.functional.pad(r, (0, t.shape[-2]))
            upper[v] = torch.cat([torch.cat([overlap, t.mT], -1), last], -2).mT
        return upper

    def project(self, bases: Maps) -> list[torch.Tensor]:
        """Orthonormal nodes of the tensor, projected on the columns of ``bases[v]`` at every edge.

        Shape of a basis: ``(*batch, columns of the node, new rank)``. Complexity: per node a QR of the
        new rank, and mode products with the old core.
        """
        tree, out = self.tree, list(self.nodes)
        down: dict[int, torch.Tensor] = {}
        for v in tree.bottomup:
            if v == tree.root:
                break
            lifted = some(lift(tree, v, self.nodes[v], down))
            q, r = qr(matrix(tree, v, lifted) @ bases[v])
            out[v], down[v] = unmatrix(tree, v, q, lifted), r @ bases[v].mT
        zero, one = {}, {}
        for v in tree.nodes[tree.root].children:
            rank = self.factor[v].shape[-1]
            zero[v], one[v] = down[v][..., :rank], down[v][..., rank:] @ self.factor[v]
        out[tree.root] = some(lift(tree, tree.root, self.nodes[tree.root], zero, self.env, one))
        return out


def moved(tree: TensorTree, nodes: Nodes, tangent: Nodes, frame: Frame) -> MovedTree:
    """The sum of a point and a tangent vector, exactly.

    Complexity: per node one QR of its matrix with ``r`` columns (``2 r`` where it has fewer rows than that).
    """
    out = list(nodes)
    zero: dict[int, torch.Tensor] = {}
    one: dict[int, torch.Tensor] = {}
    inside: dict[int, torch.Tensor] = {}
    factor: dict[int, torch.Tensor] = {}
    for v in tree.bottomup:
        if v == tree.root:
            break
        old = some(lift(tree, v, nodes[v], zero))
        basis = matrix(tree, v, old)
        change = matrix(tree, v, some(lift(tree, v, tangent[v], zero, frame.env, one)))
        inside[v] = basis.mT @ change
        new, factor[v] = _beside(basis, add_product(change, basis, inside[v], -1.0))
        out[v] = unmatrix(tree, v, torch.cat([basis, new], -1), old)
        if tree.parent[v] != tree.root:
            eye = torch.eye(out[v].shape[-1], basis.shape[-1], dtype=basis.dtype, device=basis.device)
            zero[v], one[v] = eye, torch.cat([inside[v], factor[v]], -2)
    order = order_of(tree, tree.root)
    core = nodes[tree.root] + tangent[tree.root]
    for axis, v in enumerate(tree.nodes[tree.root].children):
        core = core + mode_product(frame.env[v], inside[v], axis, order)
    out[tree.root] = core
    return MovedTree(tree, out, frame.env, factor)


def _beside(basis: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """QR decomposition of columns perpendicular to a basis, of no more columns than there is room for."""
    rank = basis.shape[-1]
    if basis.shape[-2] >= 2 * rank:
        return qr(columns)
    q, r = qr(torch.cat([basis, columns], -1))
    return q[..., rank:], r[..., rank:, rank:]
