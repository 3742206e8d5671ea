"""What every layer with a low-rank weight shares."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import geoopt
import torch
from torch import nn
from typing_extensions import Self

from tenfold.manifolds import LowRankManifold, TuckerManifold, is_low_rank, move_
from tenfold.nn.parameter import declare

__all__ = ["LowRankLayer", "RankLike", "tucker_manifold"]

RankLike: TypeAlias = int | float | Sequence[int]
"""Ranks of a layer: a fraction in (0, 1] of every compressed mode, one number for all modes (both are
lowered to what is feasible), or one number per mode (which must be feasible)."""


def tucker_manifold(
    shape: Sequence[int], rank: RankLike, modes: Sequence[int], inverse_free: bool = False
) -> TuckerManifold:
    """The Tucker manifold for a weight of the given shape.

    Parameters
    ----------
    shape : sequence of int
        Shape of the dense weight.
    rank : int, float or sequence of int
        See :data:`RankLike`.
    modes : sequence of int
        The compressed modes.
    inverse_free : bool
        Lift the manifold; see :meth:`~tenfold.manifolds.TreeManifold.lifted`.

    Raises
    ------
    ValueError
        If a fraction is not in (0, 1] or explicit ranks are not feasible.
    """
    lowest = TuckerManifold(shape, 1, modes)
    if inverse_free:
        lowest = lowest.lifted()
    if isinstance(rank, Sequence):
        return lowest.with_rank(rank)
    if isinstance(rank, float):
        if not 0 < rank <= 1:
            raise ValueError(f"a rank given as a fraction must lie in (0, 1], got {rank}")
        wanted = [math.ceil(rank * shape[m]) for m in modes]
    else:
        wanted = [rank] * len(modes)
    if min(wanted, default=1) < 1:
        raise ValueError(f"ranks must be at least 1, got {rank}")
    return lowest.with_rank(lowest.tree.clip(lowest.shape, wanted))


class LowRankLayer(nn.Module, abc.ABC):
    """Base of the layers: a weight on a low-rank manifold and a dense bias.

    Attributes
    ----------
    weight : geoopt.ManifoldParameter
        The packed weight, shape ``(weight.manifold.size,)``.
    bias : torch.nn.Parameter or None
        Shape ``(out,)``.
    """

    weight: geoopt.ManifoldParameter
    bias: nn.Parameter | None

    def __init__(
        self,
        manifold: LowRankManifold,
        bias: int | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ):
        super().__init__()
        declare(self, "weight", manifold, device=device, dtype=dtype)
        if bias is None:
            self.register_parameter("bias", None)
        else:
            self.bias = nn.Parameter(torch.empty(bias, device=device, dtype=dtype))
        self.reset_parameters()

    @classmethod
    @abc.abstractmethod
    def like(cls, module: nn.Module, *, rank: RankLike, **options: Any) -> Self:
        """A new layer with the arguments of a dense one; its weights are drawn anew."""

    @classmethod
    @torch.no_grad()
    def from_dense(
        cls, module: nn.Module, *, rank: RankLike | None = None, tol: float | None = None, **options: Any
    ) -> Self:
        """A layer that approximates a dense one, by the truncated HOSVD of its weight.

        Parameters
        ----------
        module : torch.nn.Module
            The dense layer; it is not changed.
        rank : int, float or sequence of int
            Rank of the approximation, as in the constructor.
        tol : float
            Instead of ``rank``: relative tolerance for each rank.
        **options
            Further arguments of the layer, for instance ``modes`` of a convolution.

        Raises
        ------
        TypeError
            If ``module`` is not the layer's dense counterpart.
        ValueError
            If not exactly one of ``rank`` and ``tol`` is given, or an argument does not fit.
        """
        if (rank is None) == (tol is None):
            raise ValueError(f"give either rank or tol, got rank={rank} and tol={tol}")
        layer = cls.like(module, rank=1 if rank is None else rank, **options)
        weight = module.get_parameter("weight").detach()
        if tol is None:
            layer.weight.copy_(layer.manifold.from_dense(weight))
        else:
            move_(layer.weight, *layer.manifold.approximate(weight, tol=tol))
        if layer.bias is not None:
            layer.bias.copy_(module.get_parameter("bias"))
        return layer

    @abc.abstractmethod
    def to_dense(self) -> nn.Module:
        """The dense layer that computes the same."""

    @property
    def manifold(self) -> LowRankManifold:
        """Where the weight lives now."""
        return self.weight.manifold

    @property
    def rank(self) -> tuple[int, ...]:
        """The current ranks of the weight."""
        rank = self.manifold.rank
        return (rank,) if isinstance(rank, int) else tuple(rank)

    @property
    def dense_numel(self) -> int:
        """Number of entries of the dense weight."""
        return self.manifold.dense_size

    @property
    def compression(self) -> float:
        """``1 - stored / dense`` for the weight; negative where the factors are larger."""
        return 1.0 - self.manifold.size / self.dense_numel

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Conversions that make a new parameter (``to_empty``, a move to or from meta) keep the manifold."""
        manifold, wanted = self.manifold, self.weight.requires_grad
        super()._apply(fn, recurse)
        if not is_low_rank(self.weight):
            self.weight = geoopt.ManifoldParameter(self.weight.detach(), manifold, wanted)
        return self

    def dense_weight(self) -> torch.Tensor:
        """The dense weight in the layout of the torch layer; differentiable."""
        return self.manifold.to_dense(self.weight)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw weight and bias anew, at the current rank, with the variance of the dense layer.

        torch initialises a dense layer with weights of variance ``1 / (3 fan_in)`` and a uniform bias in
        ``+-1 / sqrt(fan_in)``. Here the directions are those of
        :meth:`~tenfold.manifolds.LowRankManifold.random` and the tensor is scaled to the Frobenius norm that
        the dense weight has, so the activations have the same variance at any rank.
        """
        fan_in = self.dense_numel // self.manifold.shape[0]
        x = self.manifold.random(*self.weight.shape, device=self.weight.device, dtype=self.weight.dtype)
        radial = self.manifold.radial(x)
        norm = math.sqrt(self.dense_numel / (3.0 * fan_in))
        self.weight.copy_(x + (norm / self.manifold.norm(x, radial, keepdim=True) - 1.0) * radial)
        if self.bias is not None:
            bound = 1.0 / math.sqrt(fan_in)
            nn.init.uniform_(self.bias, -bound, bound)

    @torch.no_grad()
    def copy_to_dense(self, module: nn.Module) -> None:
        """Write the dense weight and the bias into a torch layer of the same geometry."""
        module.get_parameter("weight").copy_(self.dense_weight())
        if self.bias is not None:
            module.get_parameter("bias").copy_(self.bias)
        module.train(self.training)
