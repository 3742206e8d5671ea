"""Two-dimensional convolutions with loose factors, each a chain of smaller convolutions.

Kernels are ``[out, in, height, width]``; no dense kernel is built in the forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.experiments.loose_layer import LooseLayer


class _LooseConv2d(LooseLayer):
    """Keeps the geometry of the convolution that it stands for."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, factors: Sequence[Tensor]) -> None:
        if not isinstance(layer, nn.Conv2d):
            raise TypeError(f"{type(self).__name__} needs a torch.nn.Conv2d, got {type(layer).__name__}")
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros" or layer.groups != 1:
            raise ValueError(
                f"loose factors need padding by a number of zeros and one group, got padding "
                f"{layer.padding!r}, padding_mode {layer.padding_mode!r}, groups {layer.groups}"
            )
        super().__init__(layer, factors)
        self.stride, self.padding, self.dilation = layer.stride, layer.padding, layer.dilation

    def _window(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    def _one_axis(self, axis: int) -> dict[str, Any]:
        """The geometry of the window along one axis, with nothing along the other."""
        nothing = {"stride": 1, "padding": 0, "dilation": 1}
        return {
            name: tuple(pair[a] if a == axis else nothing[name] for a in (0, 1))
            for name, pair in self._window().items()
        }


class LooseMatrixConv2d(_LooseConv2d):
    """The kernel as a matrix ``[out, in · height · width]`` of two factors."""

    equation = "or,rihw->oihw"

    @classmethod
    def full_rank(cls, shape: Sequence[int]) -> tuple[int, ...]:
        return (min(shape[0], math.prod(shape[1:])),)

    @classmethod
    def factor_shapes(cls, shape: Sequence[int], rank: Sequence[int]) -> list[tuple[int, ...]]:
        return [(shape[0], rank[0]), (rank[0], *shape[1:])]

    def forward(self, input: Tensor) -> Tensor:
        left, right = self.factors
        return F.conv2d(F.conv2d(input, right, **self._window()), left[:, :, None, None], self.bias)


class LooseTuckerConv2d(_LooseConv2d):
    """Tucker form in the two channel modes, the window modes full."""

    equation = "abhw,oa,ib->oihw"

    @classmethod
    def full_rank(cls, shape: Sequence[int]) -> tuple[int, ...]:
        return (shape[0], shape[1])

    @classmethod
    def factor_shapes(cls, shape: Sequence[int], rank: Sequence[int]) -> list[tuple[int, ...]]:
        return [(*rank, *shape[2:]), (shape[0], rank[0]), (shape[1], rank[1])]

    def forward(self, input: Tensor) -> Tensor:
        core, left, right = self.factors
        hidden = F.conv2d(F.conv2d(input, right.mT[:, :, None, None]), core, **self._window())
        return F.conv2d(hidden, left[:, :, None, None], self.bias)


class LooseCPConv2d(_LooseConv2d):
    """A sum of outer products of vectors; at full rank, so called here, as large as the dense kernel."""

    equation = "or,ir,hr,wr->oihw"

    @classmethod
    def full_rank(cls, shape: Sequence[int]) -> tuple[int, ...]:
        return (max(1, math.prod(shape) // sum(shape)),)

    @classmethod
    def factor_shapes(cls, shape: Sequence[int], rank: Sequence[int]) -> list[tuple[int, ...]]:
        return [(size, rank[0]) for size in shape]

    def forward(self, input: Tensor) -> Tensor:
        out, into, height, width = self.factors
        groups = out.shape[1]
        hidden = F.conv2d(input, into.mT[:, :, None, None])
        hidden = F.conv2d(hidden, height.mT[:, None, :, None], groups=groups, **self._one_axis(0))
        hidden = F.conv2d(hidden, width.mT[:, None, None, :], groups=groups, **self._one_axis(1))
        return F.conv2d(hidden, out[:, :, None, None], self.bias)


class LooseTTConv2d(_LooseConv2d):
    """A tensor train through the modes in, height, width, out."""

    equation = "ia,ahb,bwc,co->oihw"

    @classmethod
    def full_rank(cls, shape: Sequence[int]) -> tuple[int, ...]:
        out, into, height, width = shape
        first, last = min(into, height * width * out), min(out, into * height * width)
        return (first, min(first * height, width * last), last)

    @classmethod
    def factor_shapes(cls, shape: Sequence[int], rank: Sequence[int]) -> list[tuple[int, ...]]:
        out, into, height, width = shape
        return [(into, rank[0]), (rank[0], height, rank[1]), (rank[1], width, rank[2]), (rank[2], out)]

    def forward(self, input: Tensor) -> Tensor:
        first, height, width, last = self.factors
        hidden = F.conv2d(input, first.mT[:, :, None, None])
        hidden = F.conv2d(hidden, height.permute(2, 0, 1)[..., None], **self._one_axis(0))
        hidden = F.conv2d(hidden, width.permute(2, 0, 1)[:, :, None, :], **self._one_axis(1))
        return F.conv2d(hidden, last.mT[:, :, None, None], self.bias)
