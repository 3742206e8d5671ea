"""Convolutions with a low-rank kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.common_types import _size_2_t
from typing_extensions import Self

from tenfold.linalg import mode_product
from tenfold.manifolds import TuckerManifold
from tenfold.nn.layer import LowRankLayer, RankLike, tucker_manifold

__all__ = ["TuckerConv2d"]


class TuckerConv2d(LowRankLayer):
    r"""Drop-in for :class:`torch.nn.Conv2d` whose kernel ``[out, in, k_h, k_w]`` is a Tucker tensor.

    The layer is a pointwise convolution to ``r_in`` channels, a convolution with the core, and a pointwise
    convolution to ``out`` channels; the dense kernel is never built.

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
        Let the backward pass return gradients that divide by no singular value, accurate at any
        conditioning, for a forward and backward pass at twice the ranks.

    Raises
    ------
    ValueError
        If ``groups`` is not 1, the rank is not feasible, or an argument is refused by torch.

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

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_2_t,
        stride: _size_2_t = 1,
        padding: str | _size_2_t = 0,
        dilation: _size_2_t = 1,
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
        if groups != 1:
            raise ValueError(f"TuckerConv2d supports groups=1 only, got groups={groups}")
        # torch validates the arguments and keeps the geometry; on the meta device it costs nothing.
        geometry = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            bias=bias,
            padding_mode=padding_mode,  # type: ignore[arg-type]
            device="meta",
        )
        manifold = tucker_manifold(tuple(geometry.weight.shape), rank, modes, inverse_free)
        super().__init__(manifold, out_channels if bias else None, device, dtype)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.dilation = (
            geometry.kernel_size,
            geometry.stride,
            geometry.dilation,
        )
        self.padding, self.padding_mode, self.groups = geometry.padding, geometry.padding_mode, 1
        self._reversed_padding_repeated_twice = geometry._reversed_padding_repeated_twice

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Shape ``([b,] in_channels, h, w)`` to ``([b,] out_channels, h', w')``."""
        core, factors = self._kernel()
        hidden = F.conv2d(input, factors[1].mT[:, :, None, None]) if 1 in factors else input
        last = self.bias if 0 not in factors else None
        # The geometry (padding modes, 'same', dilation) is torch's own code, borrowed unbound.
        hidden = nn.Conv2d._conv_forward(self, hidden, core, last)  # type: ignore[arg-type]
        return F.conv2d(hidden, factors[0][:, :, None, None], self.bias) if 0 in factors else hidden

    def _kernel(self) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """The core as a kernel with full window modes, and the factors by mode."""
        manifold = self.manifold
        assert isinstance(manifold, TuckerManifold)
        core, *matrices = manifold.factors(self.weight)
        factors = dict(zip(manifold.modes, matrices, strict=True))
        axes = [*manifold.modes, *(m for m in range(4) if m not in manifold.modes)]
        core = core.permute([axes.index(m) for m in range(4)])
        for mode in (2, 3):
            if mode in factors:
                core = mode_product(core, factors[mode], mode, 4)
        return core, factors

    @classmethod
    def like(  # type: ignore[override]
        cls, module: nn.Module, *, rank: RankLike, modes: Sequence[int] = (0, 1)
    ) -> Self:
        """A new layer with the arguments of a dense one; its weights are drawn anew.

        Raises
        ------
        TypeError
            If ``module`` is not a two-dimensional convolution.
        ValueError
            If it has groups.
        """
        if not isinstance(module, nn.Conv2d):
            raise TypeError(f"{cls.__name__} needs a torch.nn.Conv2d, got {type(module).__name__}")
        weight = module.weight
        layer = cls(
            **_arguments(module),
            groups=module.groups,
            device=weight.device,
            dtype=weight.dtype,
            rank=rank,
            modes=modes,
        )
        return layer.train(module.training)

    def to_dense(self) -> nn.Conv2d:
        """The dense layer that computes the same."""
        dense = nn.Conv2d(**_arguments(self), device=self.weight.device, dtype=self.weight.dtype)
        self.copy_to_dense(dense)
        return dense

    def extra_repr(self) -> str:
        parts = [
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        ]
        if self.padding not in ((0, 0), 0):
            parts.append(f"padding={self.padding}")
        if self.dilation != (1, 1):
            parts.append(f"dilation={self.dilation}")
        if self.bias is None:
            parts.append("bias=False")
        if self.padding_mode != "zeros":
            parts.append(f"padding_mode={self.padding_mode}")
        return ", ".join([*parts, f"rank={self.rank}"])


def _arguments(module: Any) -> dict[str, Any]:
    """Arguments that make a convolution of the same geometry."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode")
    return {**{name: getattr(module, name) for name in names}, "bias": module.bias is not None}
