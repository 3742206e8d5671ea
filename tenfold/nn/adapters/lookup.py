"""Which layers of a model have adapters, and which can."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tenfold.nn.adapters.layer import AdaptedConv2d, AdaptedLayer, AdaptedLinear, Adapter
from tenfold.nn.layer import LowRankLayer

__all__ = [
    "adapted_layers",
    "adapter_names",
    "adapter_of",
    "candidates",
    "check_known",
    "check_name",
    "kind",
    "kind_of",
    "why_not",
]

_ADAPTED: dict[type[nn.Module], type[AdaptedLayer]] = {
    cls.dense_type: cls for cls in (AdaptedLinear, AdaptedConv2d)
}


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLayer]:
    """Names and layers that have adapters."""
    return {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLayer)}


def adapter_of(layer: AdaptedLayer, name: str) -> Adapter:
    """The adapter of a name of a layer that has it."""
    adapter = layer.adapters[name]
    assert isinstance(adapter, Adapter)
    return adapter


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """Names of all adapters of a model, in the order in which layers have them.

    Parameters
    ----------
    model : torch.nn.Module
        Any model.

    Returns
    -------
    tuple of str
        Empty where there are none.
    """
    return tuple(dict.fromkeys(name for layer in adapted_layers(model).values() for name in layer.adapters))


def check_name(name: str) -> None:
    """Raise ValueError unless a string can be the name of an adapter."""
    if not name or "." in name or hasattr(nn.ModuleDict(), name):
        raise ValueError(
            "the name of an adapter needs characters other than '.', and must not be an attribute of "
            f"torch.nn.ModuleDict, got {name!r}"
        )


def check_known(model: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """The names, or all if there are none; ValueError where one is not known."""
    known = adapter_names(model)
    if not known:
        raise ValueError("the model has no adapters")
    for name in names:
        if name not in known:
            raise ValueError(f"the model has no adapter {name!r}; it has {list(known)}")
    return tuple(names) or known


def why_not(model: nn.Module, layer: str, name: str = "") -> str:
    """Why a layer cannot have an adapter (of a name), or nothing."""
    module = model.get_submodule(layer)
    if kind(module) is None:
        return f"a {type(module).__name__} has no adapter, torch.nn.Linear and torch.nn.Conv2d do"
    if isinstance(module, AdaptedLayer):
        if name in module.adapters:
            return f"it has an adapter of the name {name!r}"
        return "it is merged; unmerge it first" if module.merged else ""
    if "forward" in module.__dict__:
        return "it has a forward method of its own, which would not call the adapter"
    if getattr(module, "groups", 1) != 1:
        return f"it has {module.groups} groups"
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is no parameter of its own"
    if not weight.is_floating_point():
        return f"its weight is of {weight.dtype}"
    for other, holder in model.named_modules():
        if holder is not module and any(p is weight for p in holder.parameters(recurse=False)):
            return f"it shares its weight with {other!r}"
    return ""


def kind(module: nn.Module) -> type[AdaptedLayer] | None:
    """The class of a layer with adapters, or None for a module that can have none."""
    return type(module) if isinstance(module, AdaptedLayer) else _ADAPTED.get(type(module))


def kind_of(module: nn.Module) -> type[AdaptedLayer]:
    """The class of a layer with adapters, for one that passes :func:`why_not`."""
    found = kind(module)
    assert found is not None
    return found


def candidates(model: nn.Module) -> dict[str, nn.Module]:
    """Every module that a name may mean: not the model itself, nor what is inside adapters."""
    found: dict[str, nn.Module] = {}
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in inside:
            continue
        if isinstance(module, AdaptedLayer):
            inside.update(module.adapters.modules())
        elif isinstance(module, LowRankLayer):
            inside.update(module.modules())
        if name:
            found[name] = module
    return found
