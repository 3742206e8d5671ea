"""What convolutions with a low-rank kernel share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tenfold.manifolds import TuckerManifold
from tenfold.nn.formats import Format, RankLike
from tenfold.nn.layer import LowRankLayer
from tenfold.nn.normalization import fits, normalized, update_running
from tenfold.nn.stages import Stage, kernel_manifold, stages

__all__ = ["Convolution"]

_PARTS = ("norm", "activation", "pooling")


class Convolution(LowRankLayer):
    """Base of the convolutions, whose kernel ``[out, in, *window]`` is a low-rank tensor.

    The layer is a sequence of smaller convolutions (:meth:`stages`); the dense kernel is
    never built. The geometry of each axis is applied by the one that moves along it.

    Parameters
    ----------
    geometry : torch.nn.Module
        A dense convolution of the same arguments; its weights are not read.
    rank, format, modes, inverse_free, device, dtype
        As for :class:`Conv2d`.

    Attributes
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode
        As those of the torch layer.
    recompute : bool
        Whether the backward pass computes the activations between the stages again. What follows the last
        stage, where a pooling is among :attr:`parts`, is computed again in any case. See
        :func:`~tenfold.nn.recompute_activations`.
    """

    dense_type: type[nn.modules.conv._ConvNd]
    channels = (0, 1)
    """The axes of the weight for output and input channels."""
    recompute = False

    def __init__(
        self,
        geometry: nn.modules.conv._ConvNd,
        rank: RankLike,
        format: Format | str,
        modes: Sequence[int] | None,
        inverse_free: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ):
        self.format = Format(format)
        manifold, layout = kernel_manifold(
            self.format, tuple(geometry.weight.shape), self.channels, rank, modes, inverse_free
        )
        bias = None if geometry.bias is None else geometry.out_channels
        super().__init__(manifold, layout, bias, device, dtype)
        self.in_channels, self.out_channels = geometry.in_channels, geometry.out_channels
        self.kernel_size = geometry.kernel_size
        self.stride, self.dilation = self._each(geometry.stride), self._each(geometry.dilation)
        padding = geometry.padding
        self.padding = padding if isinstance(padding, str) else self._each(padding)
        self.padding_mode, self.groups = geometry.padding_mode, 1
        self.output_padding, self.transposed = self._each(geometry.output_padding), geometry.transposed
        self._reversed_padding_repeated_twice = geometry._reversed_padding_repeated_twice

    def _each(self, values: tuple[int, ...]) -> tuple[int, ...]:
        """One value for each axis; torch reads a tuple with a single one as that of all axes."""
        return values * self.spatial if len(values) == 1 else values

    @classmethod
    def _geometry(cls, groups: int, **arguments: Any) -> nn.modules.conv._ConvNd:
        """The dense layer on the meta device: torch checks the arguments, and it costs nothing."""
        if groups != 1:
            raise ValueError(
                f"{cls.__name__} supports groups=1 only, got groups={groups}: the kernel of a group is small "
                "already, and the groups would not share their factors"
            )
        return cls.dense_type(**arguments, device="meta")

    @property
    def spatial(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel_size)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Modules that followed the layer and now belong to it: a norm, an activation, a pooling, in order.

        See :func:`~tenfold.nn.fuse_normalization` and :func:`~tenfold.nn.recompute_activations`.
        """
        found = ((name, self._modules.get(name)) for name in _PARTS)
        return {name: module for name, module in found if module is not None}

    def normalizes(self, norm: nn.Module) -> bool:
        """Whether the last convolution can do the work of a normalisation: it has to be a pointwise one."""
        pointwise = not isinstance(self.manifold, TuckerManifold) or self.channels[0] in self.manifold.modes
        return pointwise and fits(norm, self.spatial, self.out_channels)

    def to_dense(self) -> nn.Module:
        if self.parts:
            raise ValueError(
                f"the layer has taken in {', '.join(self.parts)}, which its dense counterpart cannot: call "
                "tenfold.nn.fuse_normalization(model, enabled=False) before"
            )
        return super().to_dense()

    def stages(self) -> list[Stage]:
        """The convolutions that the layer does, first to last; differentiable."""
        return stages(self.manifold, self.weight, self.layout.weight, self.channels)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Shape ``([b,] in_channels, *space)`` to ``([b,] out_channels, *space')``."""
        return self._through_stages(self._convolve, input)

    def _through_stages(self, apply: Callable[..., torch.Tensor], input: torch.Tensor) -> torch.Tensor:
        """``apply(input, stage, bias)`` stage by stage, the bias with the last, and what was moved in."""
        parts = self.parts
        norm = parts.pop("norm", None)
        tail = list(parts.values())
        *chain, last = self.stages()
        fused = norm is None or (self.normalizes(norm) and input.ndim == self.spatial + 2)

        def run(input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
            for stage in chain:
                input = apply(input, stage, None)
            kernel, moments = last.kernel, None
            bias: torch.Tensor | None = self.bias
            if norm is not None and fused:
                kernel, bias, moments = normalized(norm, kernel, bias, input)
            again = fused and bool(tail) and not self.recompute
            return _repeated(again, finish, input, kernel, bias), moments

        def finish(input: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            output = apply(input, Stage(kernel, last.axes), bias)
            return after(output) if fused else output

        def after(output: torch.Tensor) -> torch.Tensor:
            for module in tail:
                output = module(output)
            return output

        output, moments = _repeated(self.recompute, run, input)
        if moments is not None:
            update_running(norm, moments)
        return output if norm is None or fused else after(norm(output))

    def core_gradient(self, weight: torch.Tensor, grad: torch.Tensor, *inputs: Any) -> torch.Tensor | None:
        padding = self.padding if self.padding_mode == "zeros" else "other"
        if type(self).forward is not Convolution.forward or self.parts or isinstance(padding, str):
            return None
        manifold = weight.manifold  # type: ignore[attr-defined]
        core = manifold.factors(weight)[manifold.tree.root]
        with torch.enable_grad():
            chain = stages(manifold, weight, self.layout.weight, self.channels)
        place = next(k for k, stage in enumerate(chain) if stage.kernel.requires_grad)
        (input,) = inputs
        if input.ndim == self.spatial + 1:
            input, grad = input.unsqueeze(0), grad.unsqueeze(0)
        for stage in chain[:place]:
            input = self._convolve(input, stage, None)
        for stage in reversed(chain[place + 1 :]):  # pointwise in every format
            grad = self._convolve(grad, Stage(stage.kernel.transpose(0, 1), ()), None)
        kernel, axes = chain[place].kernel, chain[place].axes
        stride, dilation = self._along(axes, self.stride, 1), self._along(axes, self.dilation, 1)
        padding = self._along(axes, padding, 0)
        zeros, only_kernel = [0] * self.spatial, (False, True, False)
        kernel_grad = torch.ops.aten.convolution_backward(
            grad, input, kernel.detach(), None, stride, padding, dilation, False, zeros, 1, only_kernel
        )[1]
        return torch.autograd.grad(kernel, core, kernel_grad)[0]

    def _convolve(self, input: torch.Tensor, stage: Stage, bias: torch.Tensor | None) -> torch.Tensor:
        convolve = (F.conv1d, F.conv2d, F.conv3d)[self.spatial - 1]
        if not stage.axes:
            return convolve(input, stage.kernel, bias)
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            # Both ends of an axis, the last axis first, as torch.nn.functional.pad wants them.
            ends = list(self._reversed_padding_repeated_twice)
            for axis in range(self.spatial):
                if axis not in stage.axes:
                    first = 2 * (self.spatial - 1 - axis)
                    ends[first : first + 2] = [0, 0]
            input, padding = F.pad(input, ends, mode=self.padding_mode), 0
        elif not isinstance(padding, str):
            padding = self._along(stage.axes, padding, 0)
        stride, dilation = self._along(stage.axes, self.stride, 1), self._along(stage.axes, self.dilation, 1)
        return convolve(input, stage.kernel, bias, stride, padding, dilation)

    def _along(self, axes: Sequence[int], values: Sequence[int], otherwise: int) -> tuple[int, ...]:
        return tuple(value if axis in axes else otherwise for axis, value in enumerate(values))

    @classmethod
    def _arguments(cls, module: Any) -> dict[str, Any]:
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        arguments = {name: getattr(module, name) for name in names}
        return {**arguments, "padding_mode": module.padding_mode, "bias": module.bias is not None}

    @property
    @torch.no_grad()
    def multiplications(self) -> int:
        total, done = 0, [False] * self.spatial
        for stage in self.stages():
            for axis in stage.axes:
                done[axis] = True
            # Where an axis is not yet strided, there are more positions than in the output.
            positions = math.prod(s for s, over in zip(self.stride, done, strict=True) if not over)
            total += stage.kernel.numel() * positions
        return total

    def extra_repr(self) -> str:
        parts = [
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        ]
        if self.padding not in ((0,) * self.spatial, 0):
            parts.append(f"padding={self.padding}")
        if self.dilation != (1,) * self.spatial:
            parts.append(f"dilation={self.dilation}")
        if self.bias is None:
            parts.append("bias=False")
        if self.padding_mode != "zeros":
            parts.append(f"padding_mode={self.padding_mode}")
        return ", ".join([*parts, f"format={self.format.value}, rank={self.rank}"])


def _repeated(again: bool, function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function gives, of which only the arguments are kept for the backward pass."""
    if not (again and torch.is_grad_enabled()):
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
