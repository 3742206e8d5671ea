"""From the tangent space of one tensor tree to that of another, at any ranks."""

from __future__ import annotations

from enum import Enum

import torch

from tenfold.linalg import fold, unfold
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

__all__ = [
    "Bases",
    "carry_core",
    "filled_up",
    "overlaps",
    "transport",
    "transport_in_bases",
    "transport_squares",
]


class Bases(Enum):
    """What is known of the bases at the target of a transport."""

    ANY = "any"
    """Nothing."""
    SAME = "same"
    """They are those at the start: the points differ by their cores alone."""
    AUGMENTED = "augmented"
    """The target is what :meth:`~tenfold.manifolds.TreeManifold.augment` made of the start."""


def transport(
    tree: TensorTree,
    nodes: Nodes,
    tangent: Nodes,
    frame: Frame,
    target: Nodes,
    target_frame: Frame,
) -> list[torch.Tensor]:
    """Project the tangent tensor at ``nodes`` on the tangent space at ``target`` (any ranks).

    Complexity: mode products with the nodes only; no QR, no array larger than the nodes.
    """
    zero: dict[int, torch.Tensor] = {}
    one: dict[int, torch.Tensor] = {}
    lifted: dict[int, torch.Tensor] = {}
    moved: dict[int, torch.Tensor] = {}
    for v in tree.bottomup:
        if v == tree.root:
            break
        lifted[v] = some(lift(tree, v, nodes[v], zero))
        moved[v] = some(lift(tree, v, tangent[v], zero, frame.env, one))
        basis = matrix(tree, v, target[v])
        zero[v] = basis.mT @ matrix(tree, v, lifted[v])
        one[v] = basis.mT @ matrix(tree, v, moved[v])
    out = list(target)
    out[tree.root] = tangent[tree.root]
    # value[v] and slope[v]: the old surroundings of edge v, and their derivative, seen in the new ones.
    value: dict[int, torch.Tensor] = {}
    slope: dict[int, torch.Tensor] = {}
    for v in tree.topdown:
        node, order = tree.nodes[v], order_of(tree, v)
        if v != tree.root:
            old = matrix(tree, v, lifted[v]) @ slope[v]
            ambient = add_product(old, matrix(tree, v, moved[v]), value[v])
            inside = zero[v] @ slope[v] + one[v] @ value[v]
            flat = add_product(ambient, matrix(tree, v, target[v]), inside, -1.0)
            out[v] = unmatrix(tree, v, flat, lifted[v])
        for axis, w in enumerate(node.children):
            surroundings = some(lift(tree, v, frame.env[w], zero, skip=w))
            change = some(lift(tree, v, tangent[v], zero, frame.env, one, skip=w))
            if v != tree.root:
                surroundings = right(tree, v, surroundings, value[v])
                change = right(tree, v, change, value[v])
                static = some(lift(tree, v, nodes[v], zero, skip=w))
                change = change + right(tree, v, static, slope[v])
            rows, change = unfold(surroundings, axis, order), unfold(change, axis, order)
            if v == tree.root and axis == 0:
                # The product rule along the axis that was left out completes the core.
                sizes = tuple(target[v].shape[target[v].ndim - order :])
                out[v] = fold(add_product(zero[w] @ change, one[w], rows), axis, sizes)
            new = unfold(target_frame.env[w], axis, order).mT
            value[w], slope[w] = rows @ new, change @ new
    return out


def transport_squares(
    tree: TensorTree, squares: Nodes, frame: Frame, target_frame: Frame, overlap: Maps | None
) -> list[torch.Tensor]:
    r"""Second moments of uncorrelated coordinates after a change of bases.

    If ``a' = R a`` and the entries of ``a`` are uncorrelated with second moments ``s``, those of ``a'`` are
    ``(R * R) s``, entrywise. Here ``R`` is the product of the overlaps of old and new bases along every axis.
    What a new direction does not inherit it takes from the mean of its block.

    Parameters
    ----------
    tree : TensorTree
        Of both points.
    squares : sequence of torch.Tensor
        Second moments at the old point.
    frame, target_frame : Frame
        At the old and the new point.
    overlap : mapping or None
        The :func:`overlaps` of old bases with new ones; None if these are the same.
    """
    turned = _turned(tree, frame, target_frame, overlap)
    squared = None if overlap is None else {v: item.square() for v, item in overlap.items()}
    out = []
    for v, item in enumerate(squares):
        parts = [item, torch.ones_like(item)]
        if squared is not None:
            parts = [some(lift(tree, v, part, squared)) for part in parts]
        if v != tree.root:
            parts = [right(tree, v, part, turned[v].square()) for part in parts]
        inherited, share = parts
        out.append(filled_up(inherited, share, item, order_of(tree, v)))
    return out


def transport_in_bases(
    tree: TensorTree, tangent: Nodes, frame: Frame, target_frame: Frame
) -> list[torch.Tensor]:
    """:func:`transport` to a point that differs by its core alone.

    The bases stay, so that only what surrounds their changes is seen anew.

    Complexity: two products with every node.
    """
    turned = _turned(tree, frame, target_frame)
    return [u if v == tree.root else right(tree, v, u, turned[v]) for v, u in enumerate(tangent)]


def _turned(
    tree: TensorTree, frame: Frame, target_frame: Frame, overlap: Maps | None = None
) -> dict[int, torch.Tensor]:
    """Old surroundings of every edge seen in new ones, ``(*batch, r_v, new r_v)``; bases as there."""
    turned: dict[int, torch.Tensor] = {}
    for v in tree.topdown:
        order = order_of(tree, v)
        for axis, w in enumerate(tree.nodes[v].children):
            seen = frame.env[w]
            seen = seen if overlap is None else some(lift(tree, v, seen, overlap, skip=w))
            seen = seen if v == tree.root else right(tree, v, seen, turned[v])
            turned[w] = unfold(seen, axis, order) @ unfold(target_frame.env[w], axis, order).mT
    return turned


def filled_up(
    inherited: torch.Tensor, share: torch.Tensor, squares: torch.Tensor, order: int
) -> torch.Tensor:
    """Second moments inherited to a share, and for the rest the mean of a block; without cancellation.

    What is small stays small but positive: a quotient by its root must neither fail nor explode.
    """
    mean = squares.mean(dim=tuple(range(-order, 0)), keepdim=True)
    return inherited + mean * (1 - share).clamp(min=0.0)


def overlaps(tree: TensorTree, nodes: Nodes, target: Nodes) -> dict[int, torch.Tensor]:
    """New bases times old bases, for every subtree."""
    overlap: dict[int, torch.Tensor] = {}
    for v in tree.bottomup:
        if v != tree.root:
            old = some(lift(tree, v, nodes[v], overlap))
            overlap[v] = matrix(tree, v, target[v]).mT @ matrix(tree, v, old)
    return overlap


def carry_core(tree: TensorTree, nodes: Nodes, target: Nodes, core: torch.Tensor) -> torch.Tensor:
    """A core in the bases of ``nodes``, projected on those of ``target``."""
    return some(lift(tree, tree.root, core, overlaps(tree, nodes, target)))
