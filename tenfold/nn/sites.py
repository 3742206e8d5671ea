"""The layers of a model that can be low-rank, and their replacement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from tenfold.nn.attention import MultiheadAttention
from tenfold.nn.conv import Conv1d, Conv2d, Conv3d, TuckerConv2d
from tenfold.nn.conv_transpose import ConvTranspose2d
from tenfold.nn.embedding import Embedding
from tenfold.nn.formats import Format
from tenfold.nn.layer import LowRankLayer
from tenfold.nn.linear import Linear, TuckerLinear

__all__ = ["Site", "counterpart", "find_sites", "patterns_of", "refuse_bare", "replace", "why_not"]

_LAYERS: dict[type[nn.Module], type[LowRankLayer]] = {
    cls.dense_type: cls for cls in (Linear, Conv1d, Conv2d, Conv3d, ConvTranspose2d, Embedding)
}
_TUCKER = {cls.dense_type: cls for cls in (TuckerLinear, TuckerConv2d)}


def counterpart(kind: type[nn.Module], format: Format) -> tuple[type[LowRankLayer], dict[str, Any]]:
    """The class that stands for a torch layer in a format, and what it must be told of the format."""
    if format is Format.TUCKER and kind in _TUCKER:
        return _TUCKER[kind], {}
    return _LAYERS[kind], {"format": format}


@dataclass
class Site:
    """One dense layer that may be replaced.

    Attributes
    ----------
    name : str
        Its name; a projection inside ``torch.nn.MultiheadAttention`` is named as if it were a layer.
    module : torch.nn.Module
        The layer. Of a projection, a dense copy that belongs to ``split``.
    owner : torch.nn.Module
        What is replaced in the model: the layer, or the attention around the projection.
    split : MultiheadAttention or None
        The attention that will replace ``owner``.
    owner_name : str
        The name of ``owner``.
    """

    name: str
    module: nn.Module
    owner: nn.Module
    split: MultiheadAttention | None
    owner_name: str

    def fits(self, patterns: Sequence[str]) -> bool:
        """Whether a pattern in the manner of :mod:`fnmatch` names the layer, or the attention around it."""
        return any(fnmatchcase(name, p) for name in (self.name, self.owner_name) for p in patterns)


def patterns_of(argument: str, patterns: Iterable[str]) -> list[str]:
    """The patterns that an argument holds; TypeError for one string, each letter of which would be one."""
    if isinstance(patterns, str):
        raise TypeError(f"{argument} must be a sequence of names or patterns, got the string {patterns!r}")
    return list(patterns)


def refuse_bare(model: nn.Module) -> None:
    """Raise ValueError for a layer by itself, which nothing holds that could hold another one."""
    kind = type(model)
    if kind in (*_LAYERS, nn.MultiheadAttention):
        raise ValueError(
            f"the model is a {kind.__name__} itself, which cannot be replaced in place: use "
            f"tenfold.nn.{kind.__name__}.from_dense, or a model with the layer inside"
        )


def find_sites(model: nn.Module) -> list[Site]:
    """All layers below ``model`` whose type has a low-rank counterpart, in the order of registration.

    Subclasses are among them; :func:`why_not` says that they stay. A module that is used twice is one site.
    """
    sites: list[Site] = []
    inside: set[nn.Module] = set()
    module: nn.Module
    for name, module in model.named_modules():
        if not name or module in inside:
            continue
        if type(module) is nn.MultiheadAttention:
            inside.update(module.children())
            split = MultiheadAttention.split(module)
            sites += [Site(f"{name}.{n}", child, module, split, name) for n, child in split.named_children()]
        elif isinstance(module, (*_LAYERS, nn.MultiheadAttention)):
            sites.append(Site(name, module, module, None, name))
    return sites


def why_not(site: Site, model: nn.Module, format: Format) -> str:
    """Why a layer cannot be low-rank in a format, or nothing."""
    owner = site.owner
    if type(owner) not in (*_LAYERS, nn.MultiheadAttention):
        return f"a {type(owner).__name__} may compute something else than its base class"
    if any(is_parametrized(part) for part in owner.modules()):
        return "it is parametrized, which would be lost"
    for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        if any(getattr(part, name) for part in owner.modules()):
            return "it has hooks, which would be lost"
    if any("forward" in part.__dict__ for part in owner.modules()):
        return "it has a forward method of its own, which would be lost"
    others = _others(owner, model)
    if others:
        return f"it shares a parameter with {others[0]!r}"
    groups = getattr(owner, "groups", 1)
    if groups != 1:
        return f"it has {groups} groups"
    weight = site.module.get_parameter("weight")
    if weight.dtype not in (torch.float32, torch.float64):
        return f"weights of {weight.dtype} cannot be decomposed"
    cls, options = counterpart(type(site.module), format)
    if format not in cls.formats:
        return f"{cls.__name__} has no format {format.value!r}"
    try:
        # At rank 1, which every shape has: what is refused now is the layer and not the rank.
        cls(**{**cls._arguments(site.module), **options, "rank": 1, "device": "meta"})
    except ValueError as error:
        return str(error)
    return ""


def _others(module: nn.Module, model: nn.Module) -> list[str]:
    """Names of the modules that hold a parameter of this one, or of those below it, as well."""
    own = set(module.modules())
    parameters = {id(parameter) for parameter in module.parameters()}
    return [
        name
        for name, other in model.named_modules()
        if other not in own and any(id(p) in parameters for p in other.parameters(recurse=False))
    ]


def replace(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put modules in the place of others, wherever in ``model`` these are."""
    for parent in list(model.modules()):
        # named_children would leave out a module that it has shown under another name.
        for name, child in list(parent._modules.items()):
            if child is not None and child in new:
                parent.add_module(name, new[child])
    _fused_inference(model)


def _fused_inference(model: nn.Module) -> None:
    """Keep torch's encoder layers off the fused path of inference, which reads weights as dense ones."""
    kinds = {F.relu: 1, F.gelu: 2, nn.ReLU: 1, nn.GELU: 2}
    low_rank = set()
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            if any(isinstance(part, LowRankLayer | MultiheadAttention) for part in module.modules()):
                low_rank.add(module)
                module.activation_relu_or_gelu = 0
            else:
                activation = module.activation
                module.activation_relu_or_gelu = kinds.get(activation, kinds.get(type(activation), 0))
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and not low_rank.isdisjoint(module.layers):
            module.use_nested_tensor = False
