r"""A step on a tensor tree made of matrix products and small Cholesky factors only.

The exact frame (:class:`~tenfold.manifolds.tree_calculus.Frame`) costs a QR of every unfolding, and the
exact gradient divides by its triangular factor. Here ``S_v`` is replaced by the Cholesky factor of the
damped Gram matrix

.. math:: L_v L_v^T = S_v S_v^T + \delta \mu_v I, \qquad \mu_v = \operatorname{mean diag} S_v S_v^T

which is ``S_v`` itself at ``delta = 0``. Coordinates, gradient and step are then

.. math:: D_v = (I - U_v U_v^T) g_v L_v^{-T}, \qquad E_v = D_v L_v^{-1}, \qquad
          W^+ = (C + \dot C) \times_v (U_v + E_v)

brought to orthonormal bases by one Cholesky-QR (the Gram matrix of ``U_v + E_v`` is ``I + E_v^T E_v``, well
conditioned unless steps are many times longer than the tensor) or by another method.
At ``delta = 0`` this is a first-order retraction of the Riemannian gradient;
the damping takes the stiffness out of small singular values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tenfold.linalg import Orthonormalization, cholesky, invert_upper, orthonormalize, unfold
from tenfold.manifolds.tree import TensorTree
from tenfold.manifolds.tree_calculus import (
    Frame,
    Nodes,
    add_product,
    lift,
    matrix,
    order_of,
    right,
    some,
    unmatrix,
)

__all__ = ["DampedFrame", "coordinates", "frame_of", "isometric", "retract"]


@dataclass(frozen=True)
class DampedFrame:
    """The damped surroundings of every edge.

    Attributes
    ----------
    inverse : dict
        ``inverse[v] = L_v^{-T}``, upper triangular, shape ``(*batch, r_v, r_v)``: products take the place of
        triangular solves with many rows, which cost more in copies than they save in operations. The
        damping bounds its norm.
    """

    inverse: dict[int, torch.Tensor]


def frame_of(tree: TensorTree, nodes: Nodes, damping: float, exact: Frame | None = None) -> DampedFrame:
    """Damped Gram matrices of every edge, from the root downwards, and their Cholesky factors.

    Complexity: ``r_v`` times the size of the parent per edge, which an exact frame saves, and a Cholesky
    factor of ``r_v x r_v``.
    """
    axes = tuple(range(-tree.nodes[tree.root].legs, 0))
    scale = nodes[tree.root].abs().amax(axes, keepdim=True)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    flat = scale.reshape(*scale.shape[: scale.ndim - tree.nodes[tree.root].legs], 1, 1)
    inverse: dict[int, torch.Tensor] = {}
    for w, gram in _grams(tree, nodes, scale) if exact is None else _known_grams(exact, flat):
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        # The second term keeps the factor of an exactly singular matrix finite at damping 0.
        rank, limits = gram.shape[-1], torch.finfo(gram.dtype)
        diagonal += (damping + 4 * limits.eps * rank) * diagonal.mean(-1, keepdim=True) + limits.tiny**0.5
        inverse[w] = invert_upper(flat * cholesky(gram).mT)
    return DampedFrame(inverse)


def _grams(tree: TensorTree, nodes: Nodes, scale: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """The Gram matrix of every edge in units of ``scale ** 2``, to be overwritten."""
    grams: dict[int, torch.Tensor] = {}
    for v in (v for v in tree.topdown if tree.nodes[v].children):
        order = order_of(tree, v)
        center = nodes[v] / scale if v == tree.root else nodes[v]
        weighted = center if v == tree.root else right(tree, v, center, grams[v])
        for axis, w in enumerate(tree.nodes[v].children):
            rows = unfold(center, axis, order)
            gram = (rows if v == tree.root else unfold(weighted, axis, order)) @ rows.mT
            if tree.nodes[w].children:
                grams[w] = gram.clone()
            yield w, gram


def _known_grams(exact: Frame, scale: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    for w, upper in exact.upper.items():
        scaled = upper / scale
        yield w, scaled.mT @ scaled


def retract(
    tree: TensorTree,
    nodes: Nodes,
    tangent: Nodes,
    frame: DampedFrame,
    method: Orthonormalization = Orthonormalization.CHOLESKY,
) -> list[torch.Tensor]:
    """First-order retraction ``(C + dC) x_v (U_v + E_v)``, whose bases `method` makes orthonormal.

    Complexity: products of ``n x r`` and ``r x r`` matrices, mode products with the nodes, and what the
    method takes: by default Cholesky factors and inverses of ``r x r``, no QR and no SVD.
    """
    out = list(nodes)
    carry: dict[int, torch.Tensor] = {}
    for v in tree.bottomup:
        if v == tree.root:
            out[v] = some(lift(tree, v, nodes[v] + tangent[v], carry))
            continue
        old = matrix(tree, v, nodes[v])
        new = add_product(old, matrix(tree, v, tangent[v]), frame.inverse[v].mT)
        moved = some(lift(tree, v, unmatrix(tree, v, new, nodes[v]), carry))
        basis, carry[v] = orthonormalize(matrix(tree, v, moved), method)
        out[v] = unmatrix(tree, v, basis, moved)
    return out


def isometric(tree: TensorTree, tangent: Nodes, frame: DampedFrame, exact: Frame) -> list[torch.Tensor]:
    """The tangent vector along which :func:`retract` leaves, in isometric coordinates.

    They are ``D_v L_v^{-1} S_v``.
    """
    out = list(tangent)
    for v, upper in exact.upper.items():
        change = frame.inverse[v].mT @ upper.mT
        out[v] = unmatrix(tree, v, matrix(tree, v, tangent[v]) @ change, tangent[v])
    return out


def coordinates(tree: TensorTree, tangent: Nodes, frame: DampedFrame, exact: Frame) -> list[torch.Tensor]:
    """Damped coordinates of a gradient from its isometric ones: ``D_v S_v^T L_v^{-T}``."""
    out = list(tangent)
    for v, inverse in frame.inverse.items():
        change = exact.upper[v] @ inverse
        out[v] = unmatrix(tree, v, matrix(tree, v, tangent[v]) @ change, tangent[v])
    return out
