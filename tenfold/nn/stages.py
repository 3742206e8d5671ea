"""A low-rank kernel as a sequence of smaller convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tenfold.linalg import mode_product
from tenfold.manifolds import FixedRankManifold, TensorTrainManifold, TreeManifold, TuckerManifold
from tenfold.nn.formats import (
    Format,
    RankLike,
    fixed_rank_manifold,
    tensor_train_manifold,
    tucker_manifold,
)
from tenfold.nn.layout import Layout

__all__ = ["Stage", "kernel_manifold", "stages"]


@dataclass(frozen=True)
class Stage:
    """One convolution of the sequence.

    Attributes
    ----------
    kernel : torch.Tensor
        Shape ``(channels out, channels in, *window)``; the window is 1 on every axis but ``axes``.
    axes : tuple of int
        The spatial axes along which it moves, strides and pads; all are 0, 1, ... without the channels.
    """

    kernel: torch.Tensor
    axes: tuple[int, ...]


def kernel_manifold(
    format: Format,
    weight: Sequence[int],
    channels: tuple[int, int],
    rank: RankLike,
    modes: Sequence[int] | None,
    inverse_free: bool,
) -> tuple[TreeManifold, Layout]:
    """Where a kernel lives in a format, and how its dense weight is laid out there.

    Parameters
    ----------
    format : Format
        The format.
    weight : sequence of int
        Shape of the dense weight, the channels on its first two axes.
    channels : tuple of int
        The axis of the output channels and that of the input channels.
    rank : int, float or sequence of int
        See :data:`~tenfold.nn.formats.RankLike`.
    modes : sequence of int or None
        The compressed modes of a Tucker kernel; None means both channel modes.
    inverse_free : bool
        Lift the manifold.

    Raises
    ------
    ValueError
        If the rank is not feasible, or modes are given for another format than Tucker.
    """
    if modes is not None and format is not Format.TUCKER:
        raise ValueError(f"modes belong to the format 'tucker', not to {format.value!r}")
    out, into = channels
    window = range(2, len(weight))
    if format is Format.TUCKER:
        modes = (0, 1) if modes is None else modes
        return tucker_manifold(weight, rank, modes, inverse_free), Layout.plain(weight)
    if format is Format.TENSOR_TRAIN:
        layout = Layout.permuted(weight, (into, *window, out))
        return tensor_train_manifold(layout.tensor, rank, 0, inverse_free), layout
    rest = 1
    for axis in (into, *window):
        rest *= weight[axis]
    layout = Layout(tuple(weight), (weight[out], rest), (out, into, *window))
    return fixed_rank_manifold(layout.tensor, rank, inverse_free), layout


def stages(
    manifold: TreeManifold, weight: torch.Tensor, shape: Sequence[int], channels: tuple[int, int]
) -> list[Stage]:
    """The convolutions that a packed kernel stands for, first to last.

    Parameters
    ----------
    manifold : TreeManifold
        One that :func:`kernel_manifold` gave, at any rank.
    weight : torch.Tensor
        The packed kernel, shape ``(manifold.size,)``.
    shape : sequence of int
        Shape of the dense weight.
    channels : tuple of int
        The axis of the output channels and that of the input channels.

    Returns
    -------
    list of Stage
        Tucker: a pointwise one, the core, a pointwise one. Tensor Train: a pointwise one, one along each
        axis of the window, a pointwise one. Fixed rank: the unfolded kernel, a pointwise one.
    """
    factors = manifold.factors(weight)
    spatial = len(shape) - 2
    everywhere = tuple(range(spatial))
    if isinstance(manifold, TuckerManifold):
        core, by_mode = _core(manifold, factors, spatial + 2)
        out, into = (by_mode.get(mode) for mode in channels)
        chain = [] if into is None else [Stage(_pointwise(into.mT, spatial), ())]
        chain.append(Stage(core.permute(*channels, *range(2, core.ndim)), everywhere))
        return chain if out is None else [*chain, Stage(_pointwise(out, spatial), ())]
    if isinstance(manifold, TensorTrainManifold):
        first, *cores, last = factors
        chain = [Stage(_pointwise(first.mT, spatial), ())]
        for axis, core in enumerate(cores):
            window = [core.shape[1] if other == axis else 1 for other in everywhere]
            chain.append(Stage(core.permute(2, 0, 1).reshape(core.shape[2], core.shape[0], *window), (axis,)))
        return [*chain, Stage(_pointwise(last.mT, spatial), ())]
    assert isinstance(manifold, FixedRankManifold)
    core, left, right = factors
    kernel = right.mT.reshape(right.shape[1], shape[channels[1]], *shape[2:])
    return [Stage(kernel, everywhere), Stage(_pointwise(left @ core, spatial), ())]


def _pointwise(matrix: torch.Tensor, spatial: int) -> torch.Tensor:
    return matrix.reshape(*matrix.shape, *[1] * spatial)


def _core(
    manifold: TuckerManifold, factors: Sequence[torch.Tensor], order: int
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """The core as a kernel with full window modes, and the factors by mode."""
    core, *matrices = factors
    by_mode = dict(zip(manifold.modes, matrices, strict=True))
    axes = [*manifold.modes, *(m for m in range(order) if m not in manifold.modes)]
    core = core.permute([axes.index(m) for m in range(order)])
    for mode in range(2, order):
        if mode in by_mode:
            core = mode_product(core, by_mode[mode], mode, order)
    return core, by_mode
