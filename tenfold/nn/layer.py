"""What every layer with a low-rank weight shares."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping
from typing import Any

import geoopt
import torch
from torch import nn
from typing_extensions import Self

from tenfold.distributed.registry import has_company
from tenfold.distributed.sharded import is_sharded
from tenfold.manifolds import TreeManifold, is_low_rank, move_, rank_tuple
from tenfold.nn.formats import Format, RankLike
from tenfold.nn.layout import Layout
from tenfold.nn.parameter import declare

__all__ = ["LowRankLayer", "check_parameters"]


class LowRankLayer(nn.Module, abc.ABC):
    """Base of the layers: a weight on a low-rank manifold and a dense bias.

    Attributes
    ----------
    weight : geoopt.ManifoldParameter
        The packed weight, shape ``(weight.manifold.size,)``.
    bias : torch.nn.Parameter or None
        Shape ``(out,)``.
    format : Format
        How the weight is stored.
    layout : Layout
        How the dense weight of the torch layer is read as the manifold's tensor.
    """

    weight: geoopt.ManifoldParameter
    bias: nn.Parameter | None
    dense_type: type[nn.Module]
    """The torch layer that this one stands for."""
    formats: tuple[Format, ...] = tuple(Format)
    """The formats that the layer knows."""

    def __init__(
        self,
        manifold: TreeManifold,
        layout: Layout,
        bias: int | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ):
        super().__init__()
        self.layout = layout
        declare(self, "weight", manifold, device=device, dtype=dtype)
        if bias is None:
            self.register_parameter("bias", None)
        else:
            self.bias = nn.Parameter(torch.empty(bias, device=device, dtype=dtype))
        self.reset_parameters()

    def core_gradient(self, weight: torch.Tensor, grad: torch.Tensor, *inputs: Any) -> torch.Tensor | None:
        """Gradient of the core at another weight, without evaluating the layer, where it knows a way.

        Parameters
        ----------
        weight : torch.Tensor
            Packed, with its ``manifold``, which represents the same tensor as that of the layer; of its
            factors the core alone requires a gradient.
        grad : torch.Tensor
            Gradient of the output.
        *inputs
            What the layer was called with.

        Returns
        -------
        torch.Tensor or None
            In the shape of the core; None leaves it to autograd.
        """
        return None

    # Dense and back --------------------------------------------------------------------------

    @classmethod
    @abc.abstractmethod
    def _arguments(cls, module: Any) -> dict[str, Any]:
        """Arguments that make a layer of the same geometry, dense or not; without device and dtype."""

    @classmethod
    def like(cls, module: nn.Module, *, rank: RankLike, **options: Any) -> Self:
        """A new layer with the arguments of a dense one; its weights are drawn anew.

        Parameters
        ----------
        module : torch.nn.Module
            The dense layer.
        rank : int, float or sequence of int
            As in the constructor.
        **options
            Further arguments of the layer, for instance ``format``.

        Raises
        ------
        TypeError
            If ``module`` is not the layer's dense counterpart.
        ValueError
            If the layer cannot do what ``module`` does, an argument does not fit, or the weight or bias is
            computed from other parameters.
        """
        if not isinstance(module, cls.dense_type):
            raise TypeError(
                f"{cls.__name__} needs a torch.nn.{cls.dense_type.__name__}, got {type(module).__name__}"
            )
        check_parameters(module, "weight", "bias")
        weight = module.get_parameter("weight")
        arguments = {**cls._arguments(module), "rank": rank, **options}
        layer = cls(**arguments, device=weight.device, dtype=weight.dtype)
        return layer.train(module.training)

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
            If not exactly one of ``rank`` and ``tol`` is given, an argument does not fit, the weight is on
            the meta device, or the weight or bias is computed from other parameters.
        """
        if (rank is None) == (tol is None):
            raise ValueError(f"give either rank or tol, got rank={rank} and tol={tol}")
        layer = cls.like(module, rank=1 if rank is None else rank, **options)
        if layer.weight.is_meta:
            raise ValueError("a weight on the meta device has no numbers to approximate")
        tensor = layer.layout.to_tensor(module.get_parameter("weight").detach())
        if tol is None:
            layer.weight.copy_(layer.manifold.from_dense(tensor))
        else:
            move_(layer.weight, *layer.manifold.approximate(tensor, tol=tol))
        layer.take_over(module)
        return layer

    @torch.no_grad()
    def take_over(self, module: nn.Module) -> None:
        """Copy the bias of a dense layer, and what of it is trained."""
        if self.bias is not None:
            self.bias.copy_(module.get_parameter("bias"))
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(module.get_parameter(name).requires_grad)

    @torch.no_grad()
    def to_dense(self) -> nn.Module:
        """The dense layer that computes the same."""
        dense = self.dense_type(**self._arguments(self), device=self.weight.device, dtype=self.weight.dtype)
        dense.get_parameter("weight").copy_(self.dense_weight())
        if self.bias is not None:
            dense.get_parameter("bias").copy_(self.bias)
        for name, parameter in self.named_parameters():
            dense.get_parameter(name).requires_grad_(parameter.requires_grad)
        return dense.train(self.training)

    def dense_weight(self) -> torch.Tensor:
        """The dense weight in the layout of the torch layer; differentiable."""
        return self.layout.to_weight(self.manifold.to_dense(self.weight))

    # Sizes -----------------------------------------------------------------------------------

    @property
    def manifold(self) -> TreeManifold:
        """Where the weight lives now.

        A plain tensor in the place of the parameter, as ``torch.func.functional_call`` puts it there, lives
        where the parameter lived.
        """
        weight = self.weight
        if getattr(weight, "manifold", None) is None:
            # An export puts parameters of its own there.
            lost = has_company() and isinstance(weight, nn.Parameter) and not torch.compiler.is_exporting()
            if is_sharded(weight) or lost:
                raise TypeError(
                    f"the weight of {type(self).__name__} has lost its manifold: shard models by "
                    "tenfold.distributed.fully_shard, which leaves low-rank parameters whole"
                )
            return self.__dict__["_declared"].manifold
        if is_low_rank(weight) and self.__dict__.get("_declared") is not weight:
            self.__dict__["_declared"] = weight
        return weight.manifold

    @property
    def rank(self) -> tuple[int, ...]:
        """The current ranks of the weight."""
        return rank_tuple(self.manifold.rank)

    @property
    def dense_numel(self) -> int:
        """Number of entries of the dense weight."""
        return math.prod(self.layout.weight)

    @property
    def compression(self) -> float:
        """``1 - stored / dense`` for the weight; negative where the factors are larger."""
        return 1.0 - self.manifold.size / self.dense_numel

    @property
    @abc.abstractmethod
    def multiplications(self) -> int:
        """Multiplications of a forward pass, for one row, index or output position."""

    @property
    def dense_multiplications(self) -> int:
        """What the dense layer needs where this one needs :attr:`multiplications`."""
        return self.dense_numel

    # Weights ---------------------------------------------------------------------------------

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw weight and bias anew, at the current rank, with the variance of the dense layer.

        torch initialises a dense layer with weights of variance ``1 / (3 fan_in)`` and a uniform bias in
        ``+-1 / sqrt(fan_in)``. Here the directions are those of
        :meth:`~tenfold.manifolds.LowRankManifold.random` and the tensor is scaled to the Frobenius norm that
        the dense weight has, so the activations have the same variance at any rank.
        """
        fan_in = math.prod(self.layout.weight[1:])
        self._draw(1.0, 3.0 * fan_in)
        if self.bias is not None:
            bound = 1.0 / math.sqrt(fan_in)
            nn.init.uniform_(self.bias, -bound, bound)

    @torch.no_grad()
    def _draw(self, numerator: float, denominator: float) -> None:
        """Draw the weight anew, with the variance ``numerator / denominator`` of its dense entries."""
        if self.weight.is_meta:
            return
        manifold = self.manifold
        x = manifold.random(*self.weight.shape, device=self.weight.device, dtype=self.weight.dtype)
        radial = manifold.radial(x)
        norm = math.sqrt(manifold.dense_size * numerator / denominator)
        self.weight.copy_(x + (norm / manifold.norm(x, radial, keepdim=True) - 1.0) * radial)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Conversions that make a new parameter (``to_empty``, a move to or from meta) keep the manifold."""
        manifold, wanted = self.manifold, self.weight.requires_grad
        super()._apply(fn, recurse)
        if not is_low_rank(self.weight):
            self.weight = geoopt.ManifoldParameter(self.weight.detach(), manifold, wanted)
        self.__dict__["_declared"] = self.weight
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], *arguments: Any) -> None:
        super()._load_from_state_dict(state_dict, *arguments)
        self.__dict__["_declared"] = self.weight


def check_parameters(module: nn.Module, *names: str) -> None:
    """Raise ValueError where a dense layer computes from others what should be its parameter."""
    for name in names:
        if not isinstance(getattr(module, name, None), nn.Parameter | None):
            raise ValueError(
                f"the {name} of the {type(module).__name__} is computed from other parameters, which would "
                "be lost; of torch.nn.utils, parametrize.remove_parametrizations, remove_weight_norm, "
                "remove_spectral_norm or prune.remove makes it a parameter of its own"
            )
