"""Transposed convolutions with a low-rank kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.common_types import _size_2_t

from tenfold.nn.convolution import Convolution
from tenfold.nn.formats import Format, RankLike
from tenfold.nn.stages import Stage

__all__ = ["ConvTranspose2d"]


class ConvTranspose2d(Convolution):
    """Drop-in for :class:`torch.nn.ConvTranspose2d` whose kernel ``[in, out, k_h, k_w]`` is low-rank.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation
        As for :class:`torch.nn.ConvTranspose2d`; ``groups`` must be 1.
    padding_mode, device, dtype
        As for :class:`torch.nn.ConvTranspose2d`.
    format, rank, modes, inverse_free
        As for :class:`Conv2d`; the modes are those of the kernel in torch's order, in first.

    Raises
    ------
    ValueError
        If ``groups`` is not 1, the rank is not feasible, or an argument is refused by torch.

    Examples
    --------
    >>> import torch, tenfold
    >>> layer = tenfold.nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1, rank=0.5)
    >>> layer(torch.randn(2, 32, 8, 8)).shape
    torch.Size([2, 16, 16, 16])
    """

    dense_type = nn.ConvTranspose2d
    channels = (1, 0)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_2_t,
        stride: _size_2_t = 1,
        padding: _size_2_t = 0,
        output_padding: _size_2_t = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: _size_2_t = 1,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        format: Format | str = Format.TUCKER,
        rank: RankLike,
        modes: Sequence[int] | None = None,
        inverse_free: bool = False,
    ):
        geometry = self._geometry(
            groups,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            output_padding=output_padding,
            dilation=dilation,
            bias=bias,
            padding_mode=padding_mode,
        )
        super().__init__(geometry, rank, format, modes, inverse_free, device, dtype)

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        """Shape ``([b,] in_channels, h, w)`` to ``([b,] out_channels, *output_size)``, as in torch."""
        extra = nn.ConvTranspose2d._output_padding(
            self,  # type: ignore[arg-type]
            input,
            output_size,
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.kernel_size,  # type: ignore[arg-type]
            self.spatial,
            self.dilation,  # type: ignore[arg-type]
        )
        return self._through_stages(partial(self._transposed, extra), input)

    def _transposed(
        self, extra: Sequence[int], input: torch.Tensor, stage: Stage, bias: torch.Tensor | None
    ) -> torch.Tensor:
        if not stage.axes:
            return F.conv2d(input, stage.kernel, bias)
        along, axes = self._along, stage.axes
        assert not isinstance(self.padding, str)  # torch has no named paddings here
        return F.conv_transpose2d(
            input,
            stage.kernel.transpose(0, 1),
            bias,
            along(axes, self.stride, 1),
            along(axes, self.padding, 0),
            along(axes, extra, 0),
            1,
            along(axes, self.dilation, 1),
        )

    @classmethod
    def _arguments(cls, module: Any) -> dict[str, Any]:
        return {**super()._arguments(module), "output_padding": module.output_padding}

    @property
    @torch.no_grad()
    def multiplications(self) -> int:
        """Multiplications of a forward pass, for one input position."""
        total, positions = 0, 1
        for stage in self.stages():
            # Every position meets the whole kernel, and strides make more positions for what follows.
            total += stage.kernel.numel() * positions
            positions *= math.prod(self.stride[axis] for axis in stage.axes)
        return total
