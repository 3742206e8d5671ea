"""Convolutions with a low-rank kernel in one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import nn

from tenfold.nn.convolution import Convolution
from tenfold.nn.formats import Format, RankLike

__all__ = ["Conv1d", "Conv2d", "Conv3d", "TuckerConv2d"]

_Sizes: TypeAlias = int | tuple[int, ...]


class _Conv(Convolution):
    """What the three have in common: the arguments of torch's, and those of the format."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Sizes,
        stride: _Sizes = 1,
        padding: str | _Sizes = 0,
        dilation: _Sizes = 1,
        groups: int = 1,
        bias: bool = True,
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
            dilation=dilation,
            bias=bias,
            padding_mode=padding_mode,
        )
        super().__init__(geometry, rank, format, modes, inverse_free, device, dtype)


class Conv1d(_Conv):
    """Drop-in for :class:`torch.nn.Conv1d` with a low-rank kernel.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        As for :class:`torch.nn.Conv1d`; ``groups`` must be 1.
    device, dtype
        As for :class:`torch.nn.Conv1d`.
    format : Format or str
        How the kernel is stored: ``"tucker"`` is a pointwise convolution, one with the core and a pointwise
        one; ``"tensor-train"`` a pointwise one, one along the axis, and a pointwise one;
        ``"fixed-rank"`` a convolution to r channels and a pointwise one.
    rank : int, float or sequence of int
        Start rank: a fraction of what each rank can be, one number for all of them (both lowered to what
        is feasible), or one number for each.
    modes : sequence of int or None
        For ``"tucker"``, the compressed modes of the kernel; None means the two channel modes. The others
        stay full and carry no factor.
    inverse_free : bool
        As for :class:`Linear`.

    Raises
    ------
    ValueError
        If ``groups`` is not 1, the rank is not feasible, or an argument is refused by torch.

    Examples
    --------
    >>> import torch, tenfold
    >>> layer = tenfold.nn.Conv1d(32, 64, 5, padding=2, rank=0.25)
    >>> layer(torch.randn(2, 32, 20)).shape, layer.rank
    (torch.Size([2, 64, 20]), (16, 8))
    """

    dense_type = nn.Conv1d


class Conv2d(_Conv):
    """Drop-in for :class:`torch.nn.Conv2d` with a low-rank kernel.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        As for :class:`torch.nn.Conv2d`; ``groups`` must be 1.
    device, dtype
        As for :class:`torch.nn.Conv2d`.
    format : Format or str
        How the kernel is stored: ``"tucker"`` is a pointwise convolution, one with the core and a pointwise
        one; ``"tensor-train"`` a pointwise one, one ``k_h x 1``, one ``1 x k_w``, and a pointwise one;
        ``"fixed-rank"`` a convolution to r channels and a pointwise one.
    rank : int, float or sequence of int
        Start rank: a fraction of what each rank can be, one number for all of them (both lowered to what
        is feasible), or one number for each.
    modes : sequence of int or None
        For ``"tucker"``, the compressed modes of the kernel; None means the two channel modes. The others
        stay full and carry no factor.
    inverse_free : bool
        As for :class:`Linear`.

    Raises
    ------
    ValueError
        If ``groups`` is not 1, the rank is not feasible, or an argument is refused by torch.

    Examples
    --------
    >>> import torch, tenfold
    >>> layer = tenfold.nn.Conv2d(32, 64, 3, padding=1, format="tensor-train", rank=8)
    >>> layer(torch.randn(2, 32, 8, 8)).shape
    torch.Size([2, 64, 8, 8])
    >>> [tuple(stage.kernel.shape) for stage in layer.stages()]
    [(8, 32, 1, 1), (8, 8, 3, 1), (8, 8, 1, 3), (64, 8, 1, 1)]
    """

    dense_type = nn.Conv2d


class Conv3d(_Conv):
    """Drop-in for :class:`torch.nn.Conv3d` with a low-rank kernel.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        As for :class:`torch.nn.Conv3d`; ``groups`` must be 1.
    device, dtype
        As for :class:`torch.nn.Conv3d`.
    format : Format or str
        How the kernel is stored: ``"tucker"`` is a pointwise convolution, one with the core and a pointwise
        one; ``"tensor-train"`` a pointwise one, one along each axis, and a pointwise one;
        ``"fixed-rank"`` a convolution to r channels and a pointwise one.
    rank : int, float or sequence of int
        Start rank: a fraction of what each rank can be, one number for all of them (both lowered to what
        is feasible), or one number for each.
    modes : sequence of int or None
        For ``"tucker"``, the compressed modes of the kernel; None means the two channel modes. The others
        stay full and carry no factor.
    inverse_free : bool
        As for :class:`Linear`.

    Raises
    ------
    ValueError
        If ``groups`` is not 1, the rank is not feasible, or an argument is refused by torch.

    Examples
    --------
    >>> import torch, tenfold
    >>> layer = tenfold.nn.Conv3d(8, 16, 3, format="fixed-rank", rank=4)
    >>> layer(torch.randn(2, 8, 5, 5, 5)).shape
    torch.Size([2, 16, 3, 3, 3])
    """

    dense_type = nn.Conv3d


class TuckerConv2d(Conv2d):
    r""":class:`Conv2d` in the format ``"tucker"``.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        As for :class:`torch.nn.Conv2d`; ``groups`` must be 1.
    device, dtype
        As for :class:`torch.nn.Conv2d`.
    rank : int, float or sequence of int
        Start rank: a fraction of every compressed mode, one number for all (both lowered to what is
        feasible), or one number for each of ``modes``.
    modes : sequence of int
        The compressed modes of the kernel. By default the two channel modes; the window modes then
        stay full and carry no factor. ``(0, 1, 2, 3)`` compresses all four.
    inverse_free : bool
        As for :class:`Linear`.

    Notes
    -----
    Complexity per output position: ``n_in r_in + r_in r_out k_h k_w + r_out n_out`` multiplications
    (the first at the input positions).

    Examples
    --------
    >>> import torch, tenfold
    >>> layer = tenfold.nn.TuckerConv2d(32, 64, 3, padding=1, rank=0.25)
    >>> layer(torch.randn(2, 32, 8, 8)).shape, layer.rank
    (torch.Size([2, 64, 8, 8]), (16, 8))
    >>> round(layer.compression, 2)
    0.87
    """

    formats = (Format.TUCKER,)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Sizes,
        stride: _Sizes = 1,
        padding: str | _Sizes = 0,
        dilation: _Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rank: RankLike,
        modes: Sequence[int] = (0, 1),
        inverse_free: bool = False,
    ):
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
            rank=rank,
            modes=modes,
            inverse_free=inverse_free,
        )
