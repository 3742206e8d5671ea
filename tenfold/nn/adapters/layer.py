"""Layers with a frozen weight and low-rank updates beside it."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from tenfold.nn.conv import TuckerConv2d
from tenfold.nn.formats import RankLike
from tenfold.nn.layer import LowRankLayer
from tenfold.nn.linear import Linear

__all__ = ["AdaptedConv2d", "AdaptedLayer", "AdaptedLinear", "Adapter"]


class Adapter(nn.Module):
    r"""One update of a frozen weight.

    .. math:: \text{share} \cdot \text{scale} \cdot M \operatorname{dropout}(x)

    Parameters
    ----------
    update : LowRankLayer
        The layer without a bias that computes ``M x``.
    scale : float
        Factor of the update, part of what the adapter is.
    dropout : float
        Probability with which an entry of the input of ``M`` is zeroed in training.

    Attributes
    ----------
    share : float
        Factor with which the adapter takes part at present; 0 means that it is not active.
    """

    def __init__(self, update: LowRankLayer, scale: float, dropout: float):
        super().__init__()
        self.update = update
        self.dropout = nn.Dropout(dropout)
        self.scale, self.share = float(scale), 1.0

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """What the adapter adds to the output of the frozen layer."""
        x = self.dropout(input.to(self.update.weight.dtype))
        return self.update(x) * (self.share * self.scale)

    def dense_weight(self) -> torch.Tensor:
        """What the adapter adds to the weight, shape as the weight."""
        return self.update.dense_weight() * (self.share * self.scale)

    def extra_repr(self) -> str:
        return f"scale={self.scale}, share={self.share}"


class AdaptedLayer(nn.Module, abc.ABC):
    r"""Base of the layers with updates; the layer stays the object that it was, its class changes.

    .. math:: y = W_0 x + b + \sum_a \text{share}_a \, \text{scale}_a \, M_a x

    Names of the frozen weight and bias, hooks and references to the layer stay valid, and the dense weight
    of an update is never built. Merged, the layer computes ``y = W x + b`` with the sum in ``W``.

    Attributes
    ----------
    adapters : torch.nn.ModuleDict
        Name and :class:`Adapter`.
    frozen_weight : torch.Tensor or None
        While merged, a copy of ``W_0``: what :meth:`unmerge` puts back and what ``state_dict`` holds.
    """

    weight: Any
    adapters: nn.ModuleDict
    frozen_weight: torch.Tensor | None

    dense_type: ClassVar[type[nn.Module]]
    """The torch layer that is adapted."""
    update_type: ClassVar[type[LowRankLayer]]
    """The layer of the updates."""

    # Adapters --------------------------------------------------------------------------------

    @classmethod
    def draw(cls, module: nn.Module, rank: RankLike) -> LowRankLayer:
        r"""An update of the weight of a layer that is zero, with random orthonormal bases.

        The core is zero, so ``M = 0``, and the manifold is :meth:`lifted
        <tenfold.manifolds.TreeManifold.lifted>`: the backward pass gives the projection of the dense
        gradient on the bases,

        .. math:: U U^T G + G V V^T - U U^T G V V^T,

        without a division by the core. A weight in half precision gets an update in float32.
        """
        weight = module.get_parameter("weight")
        single = weight.dtype in (torch.float16, torch.bfloat16)
        options = {**cls.update_type._arguments(module), "bias": False, "rank": rank, "inverse_free": True}
        dtype = torch.float32 if single else weight.dtype
        update = cls.update_type(**options, device=weight.device, dtype=dtype).train(module.training)
        with torch.no_grad():
            if not weight.is_meta:
                update.weight.sub_(update.manifold.radial(update.weight))
        return update

    @classmethod
    def attach(cls, module: nn.Module, name: str, adapter: Adapter) -> None:
        """Make an adapted layer of a dense one, if it is none yet, and give it an adapter."""
        if not isinstance(module, AdaptedLayer):
            module.__class__ = cls
            module.add_module("adapters", nn.ModuleDict())
            module.register_buffer("frozen_weight", None, persistent=False)
        module.get_submodule("adapters").add_module(name, adapter.train(module.training))

    @abc.abstractmethod
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """What the dense layer computes, and the updates."""

    def detach_adapters(self) -> None:
        """Become the dense layer again; one that is merged keeps the merged weight."""
        del self.adapters, self.frozen_weight
        self.__class__ = self.dense_type  # type: ignore[assignment]

    def _add_updates(self, input: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        if self.frozen_weight is None:
            for adapter in self._active():
                output = output + adapter(input).to(output.dtype)
        return output

    def _active(self) -> list[Adapter]:
        return [part for part in self.adapters.values() if isinstance(part, Adapter) and part.share]

    # Merging ---------------------------------------------------------------------------------

    @property
    def merged(self) -> bool:
        """Whether the updates are part of the weight at present."""
        return self.frozen_weight is not None

    @torch.no_grad()
    def merged_weight(self) -> torch.Tensor:
        """The frozen weight and all active updates, summed in the precision of the updates."""
        total: torch.Tensor = self.weight if self.frozen_weight is None else self.frozen_weight
        for adapter in self._active():
            total = total + adapter.dense_weight()
        return total.to(self.weight.dtype)

    @torch.no_grad()
    def merge(self) -> None:
        """Put the updates into the weight, and keep a copy of the frozen one."""
        if not self.merged:
            total = self.merged_weight()
            self.frozen_weight = self.weight.detach().clone()
            self.weight.copy_(total)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the frozen weight back, bit for bit."""
        if self.frozen_weight is not None:
            self.weight.copy_(self.frozen_weight)
            self.frozen_weight = None

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.frozen_weight is not None:
            destination[f"{prefix}weight"] = self.frozen_weight

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any, **options: Any
    ) -> None:
        if any(key.startswith((f"{prefix}weight", f"{prefix}adapters.")) for key in state_dict):
            self.unmerge()  # the sum would be that of old updates
        super()._load_from_state_dict(state_dict, prefix, *arguments, **options)


class AdaptedLinear(AdaptedLayer, nn.Linear):
    """A :class:`torch.nn.Linear` with updates of fixed rank; made by :func:`adapt`, not constructed.

    Parameters
    ----------
    in_features, out_features, bias, device, dtype
        As for :class:`torch.nn.Linear`.
    """

    dense_type = nn.Linear
    update_type = Linear

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Shape ``(*batch, in_features)`` to ``(*batch, out_features)``."""
        return self._add_updates(input, nn.Linear.forward(self, input))


class AdaptedConv2d(AdaptedLayer, nn.Conv2d):
    """A :class:`torch.nn.Conv2d` with updates of fixed Tucker rank; made by :func:`adapt`, not constructed.

    The two channel modes are compressed, the window is full.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        As for :class:`torch.nn.Conv2d`.
    device, dtype
        As for :class:`torch.nn.Conv2d`.
    """

    dense_type = nn.Conv2d
    update_type = TuckerConv2d

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Shape ``([b,] in_channels, h, w)`` to ``([b,] out_channels, h', w')``."""
        return self._add_updates(input, nn.Conv2d.forward(self, input))
