"""Unfoldings and mode products of batched tensors.

A tensor of order ``order`` has its own axes last; everything before them is batch.
Axes are counted from the first axis of the tensor itself, so that ``axis=0`` is the first
mode whatever the batch is. Notation: Kolda and Bader, "Tensor decompositions and
applications", SIAM Review 2009, except that the columns of an unfolding are in the order
of the remaining axes (row-major), which needs no copy for ``axis=0``.
"""

from __future__ import annotations

import math

import torch

__all__ = ["fold", "mode_product", "unfold"]

_THIN = 64
"""Number of columns below which a batch of products is slower than one product and a copy."""


def unfold(tensor: torch.Tensor, axis: int, order: int) -> torch.Tensor:
    """Mode unfolding ``Mat_axis``.

    Parameters
    ----------
    tensor : torch.Tensor
        Shape ``(*batch, n_0, ..., n_{order-1})``.
    axis : int
        The mode whose fibres become the columns, ``0 <= axis < order``.
    order : int
        Number of trailing axes that belong to the tensor.

    Returns
    -------
    torch.Tensor
        Shape ``(*batch, n_axis, prod of the other n)``.
    """
    batch = tensor.shape[: tensor.ndim - order]
    moved = tensor.movedim(axis - order, -order)
    size = moved.shape[-order]
    return moved.reshape(*batch, size, math.prod(moved.shape[tensor.ndim - order + 1 :]))


def fold(matrix: torch.Tensor, axis: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Inverse of :func:`unfold`: ``Ten_axis``.

    Parameters
    ----------
    matrix : torch.Tensor
        Shape ``(*batch, shape[axis], prod of the other sizes)``.
    axis : int
        The mode that the rows belong to.
    shape : tuple of int
        Shape of the tensor, without batch.

    Returns
    -------
    torch.Tensor
        Shape ``(*batch, *shape)``.
    """
    rest = shape[:axis] + shape[axis + 1 :]
    moved = matrix.reshape(*matrix.shape[:-2], shape[axis], *rest)
    return moved.movedim(-len(shape), axis - len(shape))


def mode_product(tensor: torch.Tensor, matrix: torch.Tensor, axis: int, order: int) -> torch.Tensor:
    """Mode product ``tensor x_axis matrix``: contract an axis with the columns of a matrix.

    Parameters
    ----------
    tensor : torch.Tensor
        Shape ``(*batch, n_0, ..., n_{order-1})``.
    matrix : torch.Tensor
        Shape ``(*batch, m, n_axis)``; the batches broadcast.
    axis : int
        The contracted mode, ``0 <= axis < order``.
    order : int
        Number of trailing axes that belong to the tensor.

    Returns
    -------
    torch.Tensor
        Shape ``(*batch, n_0, ..., m, ..., n_{order-1})`` with ``m`` at ``axis``.

    Notes
    -----
    One (batched) matrix product. The first and the last axis are contracted in place. An axis between
    others is too, unless little follows it (kernel windows): a copy then costs less than many thin products,
    and the result is a permuted view. Complexity: ``m * numel(tensor)`` multiplications.
    """
    lead = tensor.ndim - order
    batch, sizes = tensor.shape[:lead], tensor.shape[lead:]
    before, after = math.prod(sizes[:axis]), math.prod(sizes[axis + 1 :])
    if after == 1:
        out = tensor.reshape(*batch, before, sizes[axis]) @ matrix.mT
        joint = out.shape[:-2]
    elif before == 1:
        out = matrix @ tensor.reshape(*batch, sizes[axis], after)
        joint = out.shape[:-2]
    elif after < _THIN:
        shape = (*sizes[:axis], matrix.shape[-2], *sizes[axis + 1 :])
        return fold(matrix @ unfold(tensor, axis, order), axis, shape)
    else:
        out = matrix.unsqueeze(-3) @ tensor.reshape(*batch, before, sizes[axis], after)
        joint = out.shape[:-3]
    return out.reshape(*joint, *sizes[:axis], matrix.shape[-2], *sizes[axis + 1 :])
