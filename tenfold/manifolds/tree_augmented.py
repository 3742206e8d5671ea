"""Tensor trees in bases that a tangent vector augments."""

from __future__ import annotations

import torch

from tenfold.linalg import qr
from tenfold.manifolds.tree import TensorTree
from tenfold.manifolds.tree_calculus import Frame, Nodes, lift, matrix, some, unmatrix

__all__ = ["augment", "extend"]


def extend(tree: TensorTree, nodes: Nodes, tangent: Nodes, frame: Frame) -> list[torch.Tensor]:
    """``x + xi`` exactly, as a tree of orthonormal nodes of at most twice the ranks.

    Complexity: per node one QR of its matrix with ``2 r`` columns; the largest array is the core of
    ranks ``2 r``.
    """
    out, zero, one = _extended_bases(tree, nodes, tangent, frame)
    out[tree.root] = some(lift(tree, tree.root, nodes[tree.root] + tangent[tree.root], zero, frame.env, one))
    return out


def augment(tree: TensorTree, nodes: Nodes, tangent: Nodes, frame: Frame) -> list[torch.Tensor]:
    """``x`` itself in the bases of :func:`extend`: a core with room for the directions of ``xi``."""
    out, zero, _ = _extended_bases(tree, nodes, tangent, frame)
    out[tree.root] = some(lift(tree, tree.root, nodes[tree.root], zero))
    return out


def _extended_bases(
    tree: TensorTree, nodes: Nodes, tangent: Nodes, frame: Frame
) -> tuple[list[torch.Tensor], dict[int, torch.Tensor], dict[int, torch.Tensor]]:
    """Orthonormal bases of old bases and tangent directions, and both in terms of them."""
    out = list(nodes)
    zero: dict[int, torch.Tensor] = {}
    one: dict[int, torch.Tensor] = {}
    for v in tree.bottomup:
        if v == tree.root:
            continue
        old = some(lift(tree, v, nodes[v], zero))
        moved = some(lift(tree, v, tangent[v], zero, frame.env, one))
        rank = old.shape[-1]
        q, r = qr(torch.cat([matrix(tree, v, old), matrix(tree, v, moved)], dim=-1))
        zero[v], one[v] = r[..., :rank], r[..., rank:]
        out[v] = unmatrix(tree, v, q, old)
    return out, zero, one
