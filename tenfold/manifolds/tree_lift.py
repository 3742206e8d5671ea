"""Gradients in isometric coordinates straight from the backward pass, with nothing to invert."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from tenfold.manifolds.tree import TensorTree
from tenfold.manifolds.tree_calculus import Frame, order_of

if TYPE_CHECKING:
    from tenfold.manifolds.tree_manifold import TreeManifold

__all__ = ["tangent_lift"]


def tangent_lift(manifold: TreeManifold, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    r"""Factors of doubled ranks for the same tensor, whose backward pass returns isometric coordinates.

    The tensor is written as

    .. math:: W + \sum_v \Delta_v Q_v^T \qquad \text{at } \Delta = 0,

    a tree with the nodes ``[U_v | Delta_v]``. Its derivative in ``Delta_v`` is the gradient with respect to
    ``K_v = U_v S_v``, the coordinate itself, so the factor ``S_v`` that the ordinary gradient carries, and
    that a solve would have to remove, never enters.

    Parameters
    ----------
    manifold : TreeManifold
        A lifted manifold.
    x : torch.Tensor
        Packed point, shape ``(*batch, size)``.

    Returns
    -------
    tuple of torch.Tensor
        The doubled factors. The gradient that flows back to ``x`` is in isometric coordinates, before
        the gauge is enforced.

    Notes
    -----
    Complexity: a QR of every unfolding, and arrays of doubled ranks.
    """
    return _TangentLift.apply(x, manifold)


class _TangentLift(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, manifold: TreeManifold) -> tuple[torch.Tensor, ...]:
        nodes = manifold.unpack_tensor(x.detach())
        return tuple(_doubled(manifold.tree, nodes, manifold.frame(x)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, TreeManifold], output: Any) -> None:
        x, manifold = inputs
        ctx.tree = manifold.tree
        ctx.shapes = [(*x.shape[:-1], *shape) for shape in manifold.factor_shapes]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        blocks = []
        for v, (grad, shape) in enumerate(zip(grads, ctx.shapes, strict=True)):
            # The core's own block, and the block of Delta_v: old children, new parent direction.
            lead = len(shape) - order_of(ctx.tree, v)
            index = [slice(None)] * lead + [slice(0, n) for n in shape[lead:]]
            if v != ctx.tree.root:
                index[-1] = slice(shape[-1], None)
            blocks.append(grad[tuple(index)].flatten(lead))
        return torch.cat(blocks, dim=-1), None


def _doubled(tree: TensorTree, nodes: Sequence[torch.Tensor], frame: Frame) -> list[torch.Tensor]:
    out = []
    for v, node in enumerate(nodes):
        children, is_root = tree.nodes[v].children, v == tree.root
        order = order_of(tree, v)
        lead = node.ndim - order
        doubled = [*range(len(children)), *([] if is_root else [order - 1])]
        sizes = [n * 2 if axis in doubled else n for axis, n in enumerate(node.shape[lead:])]
        wide = node.new_zeros(*node.shape[:lead], *sizes)
        _place(wide, node, lead, second=())
        for axis, w in enumerate(children):
            _place(wide, frame.env[w], lead, second=(axis,) if is_root else (axis, order - 1))
        out.append(wide)
    return out


def _place(wide: torch.Tensor, block: torch.Tensor, lead: int, second: tuple[int, ...]) -> None:
    """Write a block into the first half of every axis, or the second half of the axes ``second``."""
    index = [slice(None)] * lead
    for axis, n in enumerate(block.shape[lead:]):
        index.append(slice(n, 2 * n) if axis in second else slice(0, n))
    wide[tuple(index)] = block
