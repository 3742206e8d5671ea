r"""The calculus of tensor trees: pure functions on lists of node tensors.

Everything is built from one operation, :func:`lift`. A tensor in a tree is determined by its
nodes; the tensor together with a tangent vector behaves like a dual number: for every node ``v``
the basis of its subtree has a value (the orthonormal basis itself, called *zero*) and a derivative
(*one*), and :func:`lift` is the product rule at one node.

Notation: ``U_v`` is the tensor of node ``v`` (the root's is the core ``C``). Seen from the edge above
``v`` the whole tensor is ``U_v S_v Q_v^T`` with orthonormal ``Q_v``; ``Q_v^T``, folded into the shape
of the parent of ``v``, is ``env[v]``, and ``upper[v] = S_v^T`` is upper triangular. A tangent vector is

.. math:: \xi = \dot C + \sum_v D_v Q_v^T, \qquad U_v^T D_v = 0,

with each term contracted with the remaining bases, and its terms are mutually orthogonal.

Shapes: node tensors ``(*batch, *legs, rank)``, the root ``(*batch, *legs)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from tenfold.linalg import Orthonormalization, fold, mode_product, qr, triangular_factor, unfold
from tenfold.linalg import orthonormalize as orthonormalize_matrix
from tenfold.manifolds.tree import TensorTree

__all__ = [
    "Frame",
    "add_product",
    "aligned",
    "dense",
    "dense_tangent",
    "frame_of",
    "lift",
    "matrix",
    "order_of",
    "orthonormalize",
    "perpendicular",
    "project",
    "retract",
    "right",
    "some",
    "triangular_factors",
    "unmatrix",
]

Nodes = Sequence[torch.Tensor]
Maps = Mapping[int, torch.Tensor]


@dataclass(frozen=True)
class Frame:
    """The surroundings of every edge at a point.

    Attributes
    ----------
    env : dict
        ``env[v]``: orthonormal rows, folded into the shape of the parent of ``v``; at ranks that no tensor
        can have (augmented bases) the last rows are zero.
    upper : dict
        ``upper[v] = S_v^T``: upper triangular, shape ``(*batch, r_v, r_v)``. Its singular values are those of
        the matricisation at edge ``v``.
    """

    env: dict[int, torch.Tensor]
    upper: dict[int, torch.Tensor]

    def triangular_factors(self) -> dict[int, torch.Tensor]:
        """``upper`` without the rows that are zero at ranks that no tensor can have."""
        factors = {}
        for v, factor in self.upper.items():
            rest = math.prod(self.env[v].shape[factor.ndim - 2 :]) // factor.shape[-1]
            factors[v] = factor[..., :rest, :]
        return factors


def matrix(tree: TensorTree, v: int, tensor: torch.Tensor) -> torch.Tensor:
    """A node tensor as the matrix ``(*batch, legs, rank)`` whose columns are its basis."""
    lead = tensor.ndim - tree.nodes[v].legs - 1
    return tensor.flatten(lead, -2)


def unmatrix(tree: TensorTree, v: int, flat: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Back from :func:`matrix`: the legs of ``tensor``, the batch and the last axis of ``flat``."""
    legs = tensor.shape[tensor.ndim - tree.nodes[v].legs - 1 : -1]
    return flat.reshape(*flat.shape[:-2], *legs, flat.shape[-1])


def perpendicular(basis: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """``(I - U U^T) X`` for matrices ``(*batch, n, r)``; exactly zero where nothing is perpendicular."""
    if basis.shape[-2] == basis.shape[-1]:
        batch = torch.broadcast_shapes(basis.shape[:-2], columns.shape[:-2])
        return columns.new_zeros(*batch, *columns.shape[-2:])
    return add_product(columns, basis, basis.mT @ columns, -1.0)


def add_product(
    sum: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scale: float = 1.0
) -> torch.Tensor:
    """``sum + scale * left @ right``; single matrices without an array for the product."""
    if sum.ndim == left.ndim == right.ndim == 2:
        return torch.addmm(sum, left, right, alpha=scale)
    return torch.add(sum, left @ right, alpha=scale)


def frame_of(tree: TensorTree, nodes: Nodes) -> Frame:
    """Surroundings of every edge, by QR from the root downwards.

    Complexity: one QR of size ``(other axes of the parent) x r_v`` per edge.
    """
    env: dict[int, torch.Tensor] = {}
    upper: dict[int, torch.Tensor] = {}
    for child, axis, center, order in _edges(tree, nodes, upper):
        q, upper[child] = _padded(*qr(unfold(center, axis, order).mT))
        sizes = tuple(center.shape[center.ndim - order :])
        env[child] = fold(q.mT, axis, (*sizes[:axis], q.shape[-1], *sizes[axis + 1 :]))
    return Frame(env, upper)


def _padded(q: torch.Tensor, r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Zero columns and rows for what the factors of a wide matrix lack."""
    missing = r.shape[-1] - r.shape[-2]
    if not missing:
        return q, r
    return torch.nn.functional.pad(q, (0, missing)), torch.nn.functional.pad(r, (0, 0, 0, missing))


def triangular_factors(tree: TensorTree, nodes: Nodes) -> dict[int, torch.Tensor]:
    """The ``upper`` of :func:`frame_of` alone, for half of the price."""
    upper: dict[int, torch.Tensor] = {}
    for child, axis, center, order in _edges(tree, nodes, upper):
        upper[child] = triangular_factor(unfold(center, axis, order).mT)
    return upper


def _edges(tree: TensorTree, nodes: Nodes, upper: Maps) -> Iterator[tuple[int, int, torch.Tensor, int]]:
    """Child, axis, the parent seen from above and its order for every edge, from the root downwards.

    Whoever iterates fills in ``upper`` on the way.
    """
    for v in tree.topdown:
        center = nodes[v] if v == tree.root else right(tree, v, nodes[v], upper[v].mT)
        for axis, child in enumerate(tree.nodes[v].children):
            yield child, axis, center, order_of(tree, v)


def order_of(tree: TensorTree, v: int) -> int:
    return tree.nodes[v].legs + (v != tree.root)


def right(tree: TensorTree, v: int, tensor: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Multiply the parent axis of a node tensor by ``change``, shape ``(*batch, r, new r)``."""
    legs = tree.nodes[v].legs
    return mode_product(tensor, change.mT, legs, legs + 1)


def lift(
    tree: TensorTree,
    v: int,
    value: torch.Tensor | None,
    zero: Maps,
    env: Maps | None = None,
    one: Maps | None = None,
    skip: int | None = None,
) -> torch.Tensor | None:
    r"""The product rule at one node.

    .. math:: X \times_w Z_w + \sum_w E_w \times_w Y_w \times_{w' \ne w} Z_{w'}

    over the children ``w`` of ``v``, with ``X = value``, ``Z = zero``, ``E = env``, ``Y = one``; the second
    part is left out if ``env`` is None. The child ``skip`` keeps its axis as it is and contributes
    no term. Returns None for an empty sum.

    Complexity: for ``c`` children, fewer than ``c (c + 3) / 2`` mode products with the node.
    """
    order = order_of(tree, v)
    children = [(axis, w) for axis, w in enumerate(tree.nodes[v].children) if w != skip]
    pending = {} if env is None else {w: env[w] for _, w in children}
    for axis, w in children:
        if value is not None:
            value = mode_product(value, zero[w], axis, order)
        if one is not None and w in pending:
            term = mode_product(pending.pop(w), one[w], axis, order)
            value = term if value is None else value + term
        pending = {key: mode_product(item, zero[w], axis, order) for key, item in pending.items()}
    return value


def some(value: torch.Tensor | None) -> torch.Tensor:
    assert value is not None
    return value


def orthonormalize(tree: TensorTree, nodes: Nodes) -> list[torch.Tensor]:
    """Make every node but the root orthonormal, from the leaves upwards; the tensor stays."""
    out = list(nodes)
    carry: dict[int, torch.Tensor] = {}
    for v in tree.bottomup:
        lifted = some(lift(tree, v, nodes[v], carry))
        if v == tree.root:
            out[v] = lifted
        else:
            q, carry[v] = qr(matrix(tree, v, lifted))
            out[v] = unmatrix(tree, v, q, lifted)
    return out


def dense(tree: TensorTree, nodes: Nodes, shape: Sequence[int]) -> torch.Tensor:
    """The dense tensor, by expanding the bases from the leaves upwards; differentiable."""
    zero: dict[int, torch.Tensor] = {}
    for v in tree.bottomup:
        lifted = some(lift(tree, v, nodes[v], zero))
        if v != tree.root:
            zero[v] = matrix(tree, v, lifted)
    return _natural_order(tree, lifted, shape)


def dense_tangent(
    tree: TensorTree, nodes: Nodes, tangent: Nodes, frame: Frame, shape: Sequence[int]
) -> torch.Tensor:
    """The dense tensor of a tangent vector; linear in ``tangent``."""
    zero: dict[int, torch.Tensor] = {}
    one: dict[int, torch.Tensor] = {}
    for v in tree.bottomup:
        moved = some(lift(tree, v, tangent[v], zero, frame.env, one))
        if v != tree.root:
            one[v] = matrix(tree, v, moved)
            zero[v] = matrix(tree, v, some(lift(tree, v, nodes[v], zero)))
    return _natural_order(tree, moved, shape)


def _natural_order(tree: TensorTree, expanded: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Split the expanded axes of the root into modes and sort them."""
    modes = tree.modes_below(tree.root)
    lead = expanded.ndim - tree.nodes[tree.root].legs
    split = expanded.reshape(*expanded.shape[:lead], *(shape[m] for m in modes))
    position = [modes.index(m) for m in range(tree.order)]
    return split.permute(*range(lead), *(lead + p for p in position))


def retract(
    tree: TensorTree,
    nodes: Nodes,
    tangent: Nodes,
    frame: Frame,
    method: Orthonormalization = Orthonormalization.QR,
) -> list[torch.Tensor]:
    r"""Retraction by one subspace iteration, whose bases `method` makes orthonormal.

    For every node the tensor ``x + xi`` is contracted with the *old* surroundings ``Q_v`` and the *new*
    bases of the children,

    .. math:: K_v = (x + \xi) \times_w U_w^{+T} Q_v, \qquad U_v^+ = \operatorname{orth}(K_v),

    and the new core is ``x + xi`` projected on the new bases. ``x + xi`` has tails of size
    ``O(|xi|^2)`` and the old surroundings are off by ``O(|xi|)``, so one iteration gives the dominant
    subspaces up to ``O(|xi|^3)``: the result agrees with the truncated HOSVD to that order. The gauge
    is chosen so that ``U_v^T U_v^+`` is upper triangular, hence zero moves nothing where ``S_v`` is regular.
    (Keeping the old directions of a singular one would mean to prefer them to those of a small step.)

    Notes
    -----
    Complexity: per node one orthonormalisation of its matrix and a QR of ``r x r``; no array larger than
    the nodes.
    """
    center = {tree.root: nodes[tree.root] + tangent[tree.root]}
    for v in tree.topdown:
        order = order_of(tree, v)
        for axis, w in enumerate(tree.nodes[v].children):
            gain = unfold(center[v], axis, order) @ unfold(frame.env[w], axis, order).mT
            center[w] = right(tree, w, nodes[w], gain) + tangent[w]
    out = list(nodes)
    # `zero[v]` is the overlap of the new basis with the old one, `one[v]` that with its change.
    zero: dict[int, torch.Tensor] = {}
    one: dict[int, torch.Tensor] = {}
    for v in tree.bottomup:
        moved = some(lift(tree, v, center[v], zero, frame.env, one))
        if v == tree.root:
            out[v] = moved
            continue
        old = matrix(tree, v, some(lift(tree, v, nodes[v], zero)))
        basis, _ = orthonormalize_matrix(matrix(tree, v, moved), method)
        turn, zero[v] = qr(basis.mT @ old)
        basis = basis @ turn
        out[v] = unmatrix(tree, v, basis, moved)
        one[v] = basis.mT @ matrix(tree, v, some(lift(tree, v, tangent[v], zero, frame.env, one)))
    return out


def aligned(tree: TensorTree, nodes: Nodes, old: Nodes) -> list[torch.Tensor]:
    """The same tensor in the bases whose overlap with `old` ones is upper triangular.

    Complexity: per node a QR of ``r x r`` and mode products.
    """
    out = list(nodes)
    turned: dict[int, torch.Tensor] = {}
    overlap: dict[int, torch.Tensor] = {}
    for v in tree.bottomup:
        out[v] = some(lift(tree, v, nodes[v], turned))
        if v != tree.root:
            basis = matrix(tree, v, out[v])
            turn, overlap[v] = qr(basis.mT @ matrix(tree, v, some(lift(tree, v, old[v], overlap))))
            out[v], turned[v] = unmatrix(tree, v, basis @ turn, out[v]), turn.mT
    return out


def project(tree: TensorTree, nodes: Nodes, bases: Maps) -> list[torch.Tensor]:
    """Project every edge on the columns of ``bases[v]``, shape ``(*batch, r_v, new rank)``; orthonormal."""
    down = {v: basis.mT for v, basis in bases.items()}
    out = []
    for v in range(len(tree.nodes)):
        lifted = some(lift(tree, v, nodes[v], down))
        out.append(lifted if v == tree.root else right(tree, v, lifted, bases[v]))
    return orthonormalize(tree, out) if tree.depth > 1 else out
