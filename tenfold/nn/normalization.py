"""Batch normalisation inside of a low-rank convolution."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

__all__ = ["fits", "normalized", "update_running"]

_KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fits(norm: nn.Module, spatial: int, channels: int) -> bool:
    """Whether a module normalises batches with so many spatial axes and channels, and does nothing else."""
    return type(norm) is _KINDS[spatial - 1] and norm.num_features == channels


def normalized(
    norm: Any, kernel: torch.Tensor, bias: torch.Tensor | None, inner: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    r"""Kernel and bias of the pointwise convolution that normalises its own output.

    With the mean :math:`m` and the covariance :math:`C` of its few input channels, the output :math:`Kh + b`
    has the mean :math:`Km + b` and the variances :math:`\mathrm{diag}(KCK^T)`. So it can be scaled and
    shifted before it is computed: the normalisation reads and writes no activation of full width.

    Parameters
    ----------
    norm : torch.nn.BatchNorm1d, BatchNorm2d or BatchNorm3d
        The normalisation; its running statistics are left alone.
    kernel : torch.Tensor
        Shape ``(out, r, 1, ...)``.
    bias : torch.Tensor or None
        Shape ``(out,)``.
    inner : torch.Tensor
        Input of the convolution, shape ``(n, r, *space)``.

    Returns
    -------
    kernel : torch.Tensor
        Shape ``(out, r, 1, ...)``.
    bias : torch.Tensor
        Shape ``(out,)``.
    moments : torch.Tensor or None
        Mean and unbiased variance of each output channel, shape ``(2, out)``, without a graph; None where the
        normalisation goes by its running statistics, or the batch is empty.

    Raises
    ------
    ValueError
        If the batch has one value per channel only, and its statistics are wanted.
    """
    wide = torch.promote_types(inner.dtype, torch.float32)
    moments = None
    with torch.autocast(inner.device.type, enabled=False):
        matrix = kernel.flatten(1).to(wide)
        if norm.training or norm.running_mean is None or norm.running_var is None:
            count = math.prod(inner.shape) // inner.shape[1]
            if count == 1:
                size = torch.Size([inner.shape[0], matrix.shape[0], *inner.shape[2:]])
                raise ValueError(
                    f"Expected more than 1 value per channel when training, got input size {size}"
                )
            first, second = _Moments.apply(inner.to(wide))
            mean, variance = matrix @ first, _Variance.apply(matrix, second)
            if bias is not None:
                mean = mean + bias  # which the gradient of the bias, zero, comes from
            if count:
                moments = torch.stack([mean.detach(), variance.detach() * (count / max(count - 1, 1))])
        else:
            mean, variance = norm.running_mean.to(wide), norm.running_var.to(wide)
        scale = torch.rsqrt(variance + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight
        shift = -scale * mean if bias is None else scale * (bias - mean)
        if norm.bias is not None:
            shift = shift + norm.bias
        scaled = (scale[:, None] * matrix).reshape(kernel.shape)
        return scaled.to(kernel.dtype), shift.to(kernel.dtype), moments


@torch.no_grad()
def update_running(norm: Any, moments: torch.Tensor) -> None:
    """Let the running statistics take in those of a batch, as the forward pass of torch's module does.

    Parameters
    ----------
    norm : torch.nn.BatchNorm1d, BatchNorm2d or BatchNorm3d
        The normalisation; nothing happens unless it trains and has running statistics.
    moments : torch.Tensor
        Mean and unbiased variance of each channel, shape ``(2, channels)``.
    """
    if not (norm.training and norm.track_running_stats) or norm.running_mean is None:
        return
    momentum = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    mean, variance = moments.to(norm.running_mean.dtype)
    norm.running_mean.lerp_(mean, momentum or 0.0)
    norm.running_var.lerp_(variance, momentum or 0.0)


_ROWS = 2**15
"""Rows that are in float64 at a time."""


class _Moments(torch.autograd.Function):
    """Mean and covariance of the channels, this in float64; only the input is kept, and one product is the
    backward pass.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(inner: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = inner.movedim(1, -1).flatten(0, -2)
        count = max(rows.shape[0], 1)
        mean = rows.sum(0) / count
        covariance = rows.new_zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
        for part in rows.split(_ROWS):
            part = (part - mean).double()
            covariance = covariance + part.mT @ part
        return mean, covariance / count

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[torch.Tensor], output: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        ctx.save_for_backward(*inputs, output[0])

    @staticmethod
    def backward(ctx: Any, d_mean: torch.Tensor, d_covariance: torch.Tensor) -> torch.Tensor:
        inner, mean = ctx.saved_tensors
        last = inner.movedim(1, -1)
        rows = last.flatten(0, -2)
        count = max(rows.shape[0], 1)
        matrix = ((d_covariance + d_covariance.mT) / count).to(rows)
        # The centred rows have no mean, so that of the rows gets nothing from the covariance.
        shift = d_mean / count - mean @ matrix
        return torch.addmm(shift, rows, matrix).reshape(last.shape).movedim(-1, 1)


class _Variance(torch.autograd.Function):
    """Diagonal of ``K C K^T``; in float64, as it may be far smaller than ``C``. Nothing but both is kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
        exact = matrix.to(covariance)
        return ((exact @ covariance) * exact).sum(1).to(matrix).clamp_min(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        matrix, covariance = ctx.saved_tensors
        exact = matrix.to(covariance)
        scaled = gradient.to(covariance)[:, None] * exact
        return (2 * scaled @ covariance).to(matrix), exact.mT @ scaled
