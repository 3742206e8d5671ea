"""Giving a model adapters, and taking them away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from tenfold.nn.adapters.layer import AdaptedConv2d, AdaptedLayer, AdaptedLinear, Adapter
from tenfold.nn.adapters.report import AdaptedWeight, AdapterReport
from tenfold.nn.formats import RankLike
from tenfold.nn.layer import LowRankLayer
from tenfold.nn.sites import replace

__all__ = [
    "adapt",
    "adapted_layers",
    "adapter_names",
    "adapter_of",
    "check_known",
    "check_name",
    "describe",
    "install",
    "kind_of",
    "unadapt",
    "why_not",
]

_ADAPTED: dict[type[nn.Module], type[AdaptedLayer]] = {
    cls.dense_type: cls for cls in (AdaptedLinear, AdaptedConv2d)
}
_FROZEN = "_frozen_by_adapters"


def adapt(
    model: nn.Module,
    *,
    rank: RankLike = 8,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    trainable: Sequence[str] = (),
    name: str = "default",
    scale: float = 1.0,
    dropout: float = 0.0,
) -> AdapterReport:
    r"""Freeze a model, and give its linear and two-dimensional convolutional layers low-rank updates.

    .. math:: y = W_0 x + b + \text{scale} \cdot M \operatorname{dropout}(x)

    with ``M`` on the manifold of fixed rank (linear) or of fixed Tucker rank (convolution). ``M`` is zero at
    the start, so the model computes what it did. Any optimizer of :mod:`tenfold.optim` trains the parameters
    that require a gradient. Ranks follow its ``rank_adaptation``.

    Called again with another ``name``, it adds a second adapter beside the first.

    Parameters
    ----------
    model : torch.nn.Module
        The network; its layers are changed in place and stay the objects that they are.
    rank : int, float or sequence of int
        Start rank of every update, as for the layers.
    include : sequence of str or None
        Names of layers, or patterns in the manner of :mod:`fnmatch`; None means all. A layer that is named
        outright and cannot have an adapter is an error, one that a pattern meets is left with a reason.
    exclude : sequence of str
        Names or patterns of layers without an adapter.
    trainable : sequence of str
        Names or patterns of parameters that stay as trainable as they are, for instance ``"classifier.*"``;
        the layers that they belong to get no adapter.
    name : str
        Name of the adapter.
    scale : float
        Factor of the update.
    dropout : float
        Probability with which entries of the input of the update are zeroed in training.

    Returns
    -------
    AdapterReport
        What was done, and why some layers have no adapter.

    Raises
    ------
    ValueError
        If a name or pattern fits nothing, a layer that is named outright cannot be adapted or has an adapter
        of this name, the rank is not feasible, or an argument is out of range; the model is then unchanged.

    Examples
    --------
    >>> import torch, tenfold
    >>> from tenfold.nn.adapters import adapt
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    >>> print(adapt(model, rank=4, trainable=["2.*"]))
    layer  rank  stored  dense
    0      4        528  4,096
    2      frozen: its own parameters are trained
    adapter 'default': 528 parameters, 12.9% of the weights
    >>> [key for key, p in model.named_parameters() if p.requires_grad]
    ['0.adapters.default.update.weight', '2.weight', '2.bias']
    """
    check_name(name)
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
    kept = _fitting(trainable, [key for key, _ in model.named_parameters()], "parameter")
    layers = _candidates(model)
    for pattern in [*(include or ()), *exclude]:
        if not any(fnmatchcase(layer, pattern) for layer in layers):
            known = [layer for layer in layers if not why_not(model, layer)]
            raise ValueError(f"no layer is named {pattern!r}; these can have an adapter: {known}")
    left: dict[str, str] = {}
    new: dict[str, Adapter] = {}
    for layer, module in layers.items():
        named = include is not None and layer in include
        if any(fnmatchcase(layer, pattern) for pattern in exclude):
            reason = "excluded"
        elif include is not None and not any(fnmatchcase(layer, pattern) for pattern in include):
            reason = "not included"
        elif any(key.rpartition(".")[0] == layer for key in kept):
            reason = "its own parameters are trained"
        else:
            reason = why_not(model, layer, name)
            if reason and named:
                raise ValueError(f"{layer!r} cannot have the adapter {name!r}: {reason}")
        if reason:
            if _kind(module) is not None or named:
                left[layer] = reason
            continue
        try:
            new[layer] = Adapter(kind_of(module).draw(module, rank), scale, dropout)
        except ValueError as error:
            raise ValueError(f"{layer}: {error}") from error
    if not new:
        raise ValueError(
            f"no layer would get the adapter {name!r}: {left or 'there is no layer of a fitting type'}"
        )
    install(model, name, new, kept)
    return describe(model, name, left)


def unadapt(model: nn.Module, *names: str) -> None:
    """Take adapters away, in place.

    Without the last of them a layer is the dense layer that it was, and what was frozen is trainable again
    when the last of the model's is gone. Layers that are merged keep the merged weight: :func:`merge` before
    ``unadapt`` makes a dense model of an adapted one.

    Parameters
    ----------
    model : torch.nn.Module
        The model that was given to :func:`adapt`.
    *names : str
        Names of the adapters; none means all.

    Raises
    ------
    ValueError
        If there is no such adapter, or some of several are to go while the model is merged.
    """
    wanted = set(check_known(model, names))
    layers = adapted_layers(model)
    if wanted != set(adapter_names(model)) and any(layer.merged for layer in layers.values()):
        raise ValueError("the model is merged: unmerge it before single adapters go")
    for layer in layers.values():
        for name in wanted & set(layer.adapters):
            if len(layer.adapters) > 1:
                del layer.adapters[name]
            else:
                layer.detach_adapters()
                break
    replace(model, {})  # torch's encoder layers may use their fused path again
    if not adapted_layers(model):
        for key, parameter in model.named_parameters():
            if key in model.__dict__.get(_FROZEN, ()):
                parameter.requires_grad_(True)
        model.__dict__.pop(_FROZEN, None)


def install(model: nn.Module, name: str, new: Mapping[str, Adapter], kept: Sequence[str] = ()) -> None:
    """Give layers of a model adapters that were made for them, and freeze what is none.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    name : str
        Name of the adapters.
    new : mapping
        Name of the layer and adapter; each layer passes :func:`why_not`.
    kept : sequence of str
        Names of parameters that are not frozen.
    """
    frozen = model.__dict__.setdefault(_FROZEN, set())
    updates = {id(p) for layer in adapted_layers(model).values() for p in layer.adapters.parameters()}
    for key, parameter in model.named_parameters():
        if parameter.requires_grad and key not in kept and id(parameter) not in updates:
            parameter.requires_grad_(False)
            frozen.add(key)
    for layer, adapter in new.items():
        module = model.get_submodule(layer)
        kind_of(module).attach(module, name, adapter)
    replace(model, {})  # keeps torch's encoder layers off their fused path, which reads the weights alone


def describe(model: nn.Module, name: str = "default", left: Mapping[str, str] | None = None) -> AdapterReport:
    """The present ranks and sizes of an adapter.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    name : str
        Name of the adapter.
    left : mapping or None
        Layers without it, for the report.

    Returns
    -------
    AdapterReport
        Its ``str`` is a table.

    Raises
    ------
    ValueError
        If there is no such adapter.
    """
    check_known(model, [name])
    rows = []
    for layer, module in adapted_layers(model).items():
        if name in module.adapters:
            update = adapter_of(module, name).update
            rows.append(AdaptedWeight(layer, update.rank, update.manifold.size, update.dense_numel))
    return AdapterReport(name, tuple(rows), dict(left or {}))


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
    if not name or "." in name or hasattr(nn.ModuleDict, name):
        raise ValueError(f"the name of an adapter needs characters other than '.', got {name!r}")


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
    if _kind(module) is None:
        return f"a {type(module).__name__} has no adapter, torch.nn.Linear and torch.nn.Conv2d do"
    if isinstance(module, AdaptedLayer):
        if name in module.adapters:
            return f"it has an adapter of the name {name!r}"
        return "it is merged; unmerge it first" if module.merged else ""
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


def _kind(module: nn.Module) -> type[AdaptedLayer] | None:
    return type(module) if isinstance(module, AdaptedLayer) else _ADAPTED.get(type(module))


def kind_of(module: nn.Module) -> type[AdaptedLayer]:
    """The class of a layer with adapters, for one that passes :func:`why_not`."""
    kind = _kind(module)
    assert kind is not None
    return kind


def _candidates(model: nn.Module) -> dict[str, nn.Module]:
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


def _fitting(patterns: Sequence[str], names: Sequence[str], what: str) -> list[str]:
    """The names that fit a pattern; each pattern must fit one."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"no {what} is named {pattern!r}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
