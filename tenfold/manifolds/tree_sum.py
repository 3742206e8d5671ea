"""Sums of tensors in one tree format."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tenfold.manifolds.tree import TensorTree
from tenfold.manifolds.tree_calculus import Nodes, order_of, orthonormalize

__all__ = ["weighted_sum"]


def weighted_sum(tree: TensorTree, parts: Sequence[tuple[float, Nodes]]) -> list[torch.Tensor]:
    """``sum_k a_k x_k`` of trees of any ranks, as orthonormal nodes of at most the sum of the ranks.

    The nodes are block diagonal in the axes of their edges. Complexity: per node one QR of its matrix with
    the sum of the ranks as columns; the largest array is the core of these ranks.
    """
    out = []
    for v in range(len(tree.nodes)):
        order = order_of(tree, v)
        blocks = [scale * nodes[v] if v == tree.root else nodes[v] for scale, nodes in parts]
        batch = torch.broadcast_shapes(*(block.shape[: block.ndim - order] for block in blocks))
        blocks = [block.expand(*batch, *block.shape[block.ndim - order :]) for block in blocks]
        edges = [*range(len(tree.nodes[v].children)), *([] if v == tree.root else [order - 1])]
        lead = len(batch)
        sizes = [
            sum(block.shape[lead + axis] for block in blocks)
            if axis in edges
            else blocks[0].shape[lead + axis]
            for axis in range(order)
        ]
        wide, start = blocks[0].new_zeros(*batch, *sizes), [0] * order
        for block in blocks:
            index = [slice(None)] * lead
            for axis, size in enumerate(block.shape[lead:]):
                index.append(slice(start[axis], start[axis] + size))
                start[axis] += size if axis in edges else 0
            wide[tuple(index)] += block
        out.append(wide)
    return orthonormalize(tree, out)
