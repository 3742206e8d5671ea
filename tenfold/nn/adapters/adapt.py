"""Giving a model adapters, and taking them away."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import is_lazy

from tenfold.nn.adapters.layer import Adapter
from tenfold.nn.adapters.lookup import (
    adapted_layers,
    adapter_names,
    adapter_of,
    candidates,
    check_known,
    check_name,
    kind,
    kind_of,
    why_not,
)
from tenfold.nn.adapters.report import AdaptedWeight, AdapterReport
from tenfold.nn.formats import RankLike
from tenfold.nn.sites import patterns_of, replace

__all__ = ["adapt", "describe", "install", "unadapt"]

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

    Called again with another ``name``, it adds a second adapter beside the first, and freezes nothing but
    the layers that this one belongs to.

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
    TypeError
        If ``include``, ``exclude`` or ``trainable`` is a single string.

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
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    include = None if include is None else patterns_of("include", include)
    exclude, trainable = patterns_of("exclude", exclude), patterns_of("trainable", trainable)
    kept = _fitting(trainable, [key for key, _ in model.named_parameters()], "parameter")
    layers = candidates(model)
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
            if kind(module) is not None or named:
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
    for part in model.modules():  # adapt may have been given a part of this model
        if _FROZEN in part.__dict__ and not adapted_layers(part):
            # As in the state, where a normalisation inside of a convolution keeps its name.
            present = part.state_dict(keep_vars=True)
            for key in part.__dict__[_FROZEN]:
                for parameter in [present[key]] if key in present else _in_place_of(part, key):
                    parameter.requires_grad_(True)
            del part.__dict__[_FROZEN]


def _in_place_of(model: nn.Module, key: str) -> list[nn.Parameter]:
    """The parameters of the innermost module that is still there above one that has gone."""
    above = key.rpartition(".")[0]
    modules = dict(model.named_modules())
    while above not in modules:
        above = above.rpartition(".")[0]
    return list(modules[above].parameters()) if above else []


def install(model: nn.Module, name: str, new: Mapping[str, Adapter], kept: Sequence[str] = ()) -> None:
    """Give layers of a model adapters that were made for them, and freeze it.

    The first adapters of a model freeze everything, later ones the layers that they belong to.

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

    Raises
    ------
    ValueError
        If a parameter is that of a lazy module and has no shape yet; the model is then unchanged.
    """
    first = not adapted_layers(model)
    concerned = {
        key: parameter
        for key, parameter in model.named_parameters()
        if (first or key.rpartition(".")[0] in new) and parameter.requires_grad and key not in kept
    }
    for key, parameter in concerned.items():
        if is_lazy(parameter):
            raise ValueError(f"{key!r} has no shape, and cannot be frozen, before a first forward pass")
    model.__dict__.setdefault(_FROZEN, set()).update(concerned)
    for parameter in concerned.values():
        parameter.requires_grad_(False)
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


def _fitting(patterns: Sequence[str], names: Sequence[str], what: str) -> list[str]:
    """The names that fit a pattern; each pattern must fit one."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"no {what} is named {pattern!r}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
