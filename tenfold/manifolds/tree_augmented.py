"""Tensor trees in bases that a tangent vector augments.

Augmented bases begin with the old ones: what was given in these is carried over by padding with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tenfold.linalg import mode_product, qr
from tenfold.manifolds.tree import TensorTree
from tenfold.manifolds.tree_calculus import (
    Frame,
    Nodes,
    add_product,
    lift,
    matrix,
    order_of,
    some,
    unmatrix,
)
from tenfold.manifolds.tree_transport import filled_up

__all__ = ["augment", "augmented_frame", "carry", "carry_squares", "extend"]


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


def augmented_frame(tree: TensorTree, frame: Frame, target: Nodes) -> Frame:
    """The frame at ``target``, which :func:`augment` made of a point, from that of the point; no QR.

    What surrounds the new directions is zero.
    """
    env = {v: _padded(item, _sizes(tree, tree.parent[v], target)) for v, item in frame.env.items()}
    upper = {v: _padded(item, 2 * target[v].shape[-1:]) for v, item in frame.upper.items()}
    return Frame(env, upper)


def carry(tree: TensorTree, tangent: Nodes, frame: Frame, target: Nodes) -> list[torch.Tensor]:
    """A tangent vector at a point as one at ``target``, which :func:`augment` made of the point.

    What the new bases hold of the changes of the old ones goes to the core, where it is free of their gauge.

    Complexity: two products with every node, one with every surrounding.
    """
    out = list(target)
    one: dict[int, torch.Tensor] = {}
    for v in tree.bottomup:
        sizes, order = _sizes(tree, v, target), order_of(tree, v)
        if v != tree.root:
            sizes = (*sizes[:-1], tangent[v].shape[-1])
        moved = _padded(tangent[v], sizes)
        for axis, w in enumerate(tree.nodes[v].children):
            moved = moved + _padded(mode_product(frame.env[w], one[w], axis, order), sizes)
        if v == tree.root:
            out[v] = moved
            continue
        basis, flat = matrix(tree, v, target[v]), matrix(tree, v, moved)
        one[v] = basis.mT @ flat
        rest = unmatrix(tree, v, add_product(flat, basis, one[v], -1.0), moved)
        out[v] = _padded(rest, _sizes(tree, v, target))
    return out


def carry_squares(tree: TensorTree, squares: Nodes, target: Nodes) -> list[torch.Tensor]:
    """Second moments of the coordinates of :func:`carry`; new entries take the mean of their block."""
    out = []
    for v, item in enumerate(squares):
        sizes = _sizes(tree, v, target)
        known, share = (_padded(part, sizes) for part in (item, torch.ones_like(item)))
        out.append(filled_up(known, share, item, len(sizes)))
    return out


def _sizes(tree: TensorTree, v: int, nodes: Nodes) -> tuple[int, ...]:
    """Shape of a node without the batch."""
    return tuple(nodes[v].shape[nodes[v].ndim - order_of(tree, v) :])


def _padded(tensor: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Zeros at the ends of the last axes."""
    found = tensor.shape[tensor.ndim - len(sizes) :]
    ends = [end for a, b in zip(reversed(found), reversed(sizes), strict=True) for end in (0, b - a)]
    return torch.nn.functional.pad(tensor, ends)
