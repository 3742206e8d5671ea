"""Putting the layers of an existing network on manifolds, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace as changed
from enum import Enum
from typing import Any

import torch
from torch import nn

from tenfold.manifolds import move_
from tenfold.nn.adapters.layer import AdaptedLayer
from tenfold.nn.attention import MultiheadAttention
from tenfold.nn.choice import Decomposition, ranks_for, tolerance_for
from tenfold.nn.formats import Format, RankLike
from tenfold.nn.fusion import fuse_normalization
from tenfold.nn.layer import LowRankLayer
from tenfold.nn.report import FactorizationReport, FactorizedLayer
from tenfold.nn.sites import Site, counterpart, find_sites, patterns_of, refuse_bare, replace, why_not
from tenfold.nn.timing import inputs_of, seconds_side_by_side

__all__ = ["Start", "densify", "factorize"]


class Start(str, Enum):
    """Where the weights of a factorized layer start."""

    RANDOM = "random"
    """Drawn anew at the given rank: no warm-up with the full model."""
    DECOMPOSE = "decompose"
    """The best approximation of the dense weights."""


def factorize(
    model: nn.Module,
    *,
    format: Format | str = Format.TUCKER,
    rank: RankLike | None = None,
    tol: float | None = None,
    compression: float | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    init: Start | str = Start.DECOMPOSE,
    example_input: Any = None,
) -> FactorizationReport:
    """Replace linear, convolutional, embedding and attention layers by low-rank ones, in place.

    Bias, dtype, device, training mode and ``requires_grad`` are those of the layers. Layers that share a
    parameter with another stay dense, and so do subclasses, grouped convolutions and layers with hooks;
    a module that is used in several places is replaced in all of them.

    Parameters
    ----------
    model : torch.nn.Module
        The network; its layers are replaced, everything else stays.
    format : Format or str
        The format of all new weights.
    rank : int, float or sequence of int
        Start rank of every layer: a fraction of every compressed mode or a number. It is taken as it is,
        also where the factors are then larger than the weight. The default, if neither ``tol`` nor
        ``compression`` is given, is 0.25.
    tol : float
        Instead of ``rank``: the relative error of each weight is at most this. Layers whose factors would
        be larger than the weight stay dense.
    compression : float
        Instead of ``rank``: the share of the numbers in all weights concerned that is saved, at the least;
        layers get ranks by one tolerance for all. Layers that would get larger stay dense. With
        ``init="random"``, where weights tell nothing about ranks: the share that is saved in every layer by
        itself, each at the largest fraction of its full rank that does it.
    include : sequence of str or None
        Names of layers, or patterns in the manner of :mod:`fnmatch`; None means all. The projections of an
        attention layer have the names ``<attention>.q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``.
    exclude : sequence of str
        Names or patterns of layers that stay dense.
    init : Start or str
        ``"decompose"`` approximates the dense weights, ``"random"`` draws new ones at a given ``rank`` or
        ``compression``.
    example_input
        Argument of the model (a tuple for several, a dictionary for arguments by name). If given, each new
        layer is measured beside the dense one, and stays dense where a forward pass would be slower.

    Returns
    -------
    FactorizationReport
        What was done, and why some layers stayed dense.

    Raises
    ------
    ValueError
        If ``model`` is such a layer itself, a name or pattern fits no layer, a rank is not feasible, the
        compression cannot be reached, or a weight to decompose is not finite or on the meta device; the model
        is then unchanged.
    TypeError
        If ``include`` or ``exclude`` is a single string.

    Examples
    --------
    >>> import torch, tenfold
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    >>> print(tenfold.nn.factorize(model, rank=4, format="fixed-rank", init="random", exclude=["2"]))
    layer  rank  stored  dense  mults  dense mults
    0      4        528  4,096    528        4,096
    2      dense: excluded
    compression of the factorized weights: 87.1%
    """
    form, start = Format(format), Start(init)
    given = {"rank": rank, "tol": tol, "compression": compression}
    if sum(value is not None for value in given.values()) > 1:
        raise ValueError(f"give one of rank, tol and compression, got {given}")
    if start is Start.RANDOM and tol is not None:
        raise ValueError("tol reads ranks off the weights; init='random' needs a rank or a compression")
    refuse_bare(model)
    include = None if include is None else patterns_of("include", include)
    exclude = patterns_of("exclude", exclude)
    sites = find_sites(model)
    for pattern in [*(include or ()), *exclude]:
        if not any(site.fits([pattern]) for site in sites):
            raise ValueError(
                f"no layer that could be low-rank is named {pattern!r}; there are {[s.name for s in sites]}"
            )
    left: dict[str, str] = {}
    chosen = []
    for site in sites:
        reason = _unwanted(site, include, exclude) or why_not(site, model, form)
        if reason:
            left[site.name] = reason
        else:
            chosen.append(site)
    if tol is None and (compression is None or start is Start.RANDOM):
        layers = _at_rank(chosen, form, start, 0.25 if rank is None else rank, compression)
    else:
        layers = _by_tolerance(chosen, form, tol, compression, left)
    new = _with_attention(chosen, layers)
    times: dict[nn.Module, tuple[float, float]] = {}
    if example_input is not None:
        for owner, call in inputs_of(model, list(new), example_input).items():
            times[owner] = seconds_side_by_side(new[owner], owner, call)
    rows = []
    for site in chosen:
        if site.name not in layers:
            continue
        here, dense = times.get(site.owner, (None, None))
        if here is not None and dense is not None and here > dense:
            left[site.name] = f"it would be slower, {here * 1e3:.3g} ms instead of {dense * 1e3:.3g} ms"
            new.pop(site.owner, None)
        else:
            row = _row(site, layers[site.name], start)
            rows.append(changed(row, seconds=here, dense_seconds=dense))
    replace(model, new)
    order = [site.name for site in sites]
    return FactorizationReport(tuple(rows), {name: left[name] for name in order if name in left})


def densify(model: nn.Module) -> nn.Module:
    """Replace all low-rank layers by dense ones that compute the same, in place; undoes :func:`factorize`.

    Adapters stay, and attention of which a projection has adapters keeps four layers for its projections.
    Forward and backward hooks of a layer go on with the dense one, but for those of the projections of
    attention, which torch's does not call. Layers that share a parameter, and read the same dense one from
    it, share that; the weights of attention are its own.

    Parameters
    ----------
    model : torch.nn.Module
        The network.

    Returns
    -------
    torch.nn.Module
        ``model``; if it is a low-rank layer itself, the dense layer.

    Raises
    ------
    ValueError
        If a low-rank layer has a forward method of its own, which would be lost; nothing is changed then.

    Examples
    --------
    >>> import torch, tenfold
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    >>> report = tenfold.nn.factorize(model, rank=0.25)
    >>> tenfold.nn.densify(model)
    Sequential(
      (0): Linear(in_features=64, out_features=64, bias=True)
      (1): ReLU()
      (2): Linear(in_features=64, out_features=10, bias=True)
    )
    """
    _refuse_own_forward(model)
    if isinstance(model, LowRankLayer | MultiheadAttention):
        return _hooked_as(model, model.to_dense())
    fuse_normalization(model, enabled=False)
    new: dict[nn.Module, nn.Module] = {}
    inside: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, AdaptedLayer):
            inside.update(module.adapters.modules())  # updates are merged, not densified
        elif module not in inside and isinstance(module, LowRankLayer | MultiheadAttention):
            if any(isinstance(part, AdaptedLayer) for part in module.modules()):
                continue  # torch's attention would not call them
            inside.update(module.modules())
            new[module] = _hooked_as(module, module.to_dense())
    _share(new)
    replace(model, new)
    return model


def _refuse_own_forward(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, LowRankLayer | MultiheadAttention) and "forward" in module.__dict__:
            where = f"{name!r}, a {type(module).__name__}," if name else f"the {type(module).__name__}"
            raise ValueError(f"{where} has a forward method of its own, which the dense layer would not have")


def _hooked_as(layer: nn.Module, dense: nn.Module) -> nn.Module:
    """The dense layer with the hooks of the other one: the same dictionaries, from which handles remove."""
    for name, hooks in layer.__dict__.items():
        if name.startswith(("_forward_", "_backward_", "_is_full_backward_")):
            dense.__dict__[name] = hooks
    return dense


def _share(new: Mapping[nn.Module, nn.Module]) -> None:
    """Let dense layers share the parameters that come from one of the layers before."""
    first: dict[nn.Parameter, nn.Parameter] = {}
    for layer, dense in new.items():
        for name, parameter in layer.named_parameters(recurse=False):
            own = dense.get_parameter(name)
            known = first.setdefault(parameter, own)
            if known.shape == own.shape and (own.is_meta or torch.equal(known, own)):
                dense.register_parameter(name, known)


def _unwanted(site: Site, include: Sequence[str] | None, exclude: Sequence[str]) -> str:
    if site.fits(exclude):
        return "excluded"
    return "not included" if include is not None and not site.fits(include) else ""


def _at_rank(
    sites: Sequence[Site], format: Format, start: Start, rank: RankLike, compression: float | None
) -> dict[str, LowRankLayer]:
    """At a rank common to all, or where a compression is given at that of every layer."""
    layers = {}
    for site in sites:
        cls, options = counterpart(type(site.module), format)
        make = cls.like if start is Start.RANDOM else cls.from_dense
        try:
            if compression is not None:
                lowest = cls.like(site.module, rank=1, **options)
                rank = ranks_for(compression, lowest.manifold, lowest.dense_numel)
            layers[site.name] = make(site.module, rank=rank, **options)
        except ValueError as error:
            raise ValueError(f"{site.name}: {error}") from error
        for name, parameter in layers[site.name].named_parameters():
            parameter.requires_grad_(site.module.get_parameter(name).requires_grad)
    return layers


def _by_tolerance(
    sites: Sequence[Site],
    format: Format,
    tol: float | None,
    compression: float | None,
    left: dict[str, str],
) -> dict[str, LowRankLayer]:
    found = {}
    for site in sites:
        cls, options = counterpart(type(site.module), format)
        layer = cls.like(site.module, rank=1, **options)
        layer.take_over(site.module)
        tensor = layer.layout.to_tensor(site.module.get_parameter("weight").detach())
        try:
            found[site.name] = layer, Decomposition.of(layer.manifold, tensor, layer.dense_numel)
        except ValueError as error:
            raise ValueError(f"{site.name}: {error}") from error
    if compression is not None:
        tol = tolerance_for(compression, [decomposition for _, decomposition in found.values()])
    assert tol is not None
    layers = {}
    for name, (layer, decomposition) in found.items():
        ranks = decomposition.ranks(tol)
        stored = decomposition.stored(ranks)
        if stored >= layer.dense_numel:
            left[name] = f"it would get larger, {stored:,} numbers instead of {layer.dense_numel:,}"
            continue
        move_(layer.weight, *decomposition.truncation.to(ranks))
        layers[name] = layer
    return layers


def _with_attention(sites: Sequence[Site], layers: dict[str, LowRankLayer]) -> dict[nn.Module, nn.Module]:
    """What replaces what: a layer, or an attention layer with some projections low-rank."""
    new: dict[nn.Module, nn.Module] = {}
    for site in sites:
        if site.name in layers:
            if site.split is None:
                new[site.owner] = layers[site.name]
            else:
                site.split.add_module(site.name.rpartition(".")[2], layers[site.name])
                new[site.owner] = site.split
    return new


@torch.no_grad()
def _row(site: Site, layer: LowRankLayer, start: Start) -> FactorizedLayer:
    error = None
    if start is Start.DECOMPOSE:
        weight = site.module.get_parameter("weight")
        norm = torch.linalg.vector_norm(weight).item()
        error = torch.linalg.vector_norm(layer.dense_weight() - weight).item() / norm if norm else 0.0
    return FactorizedLayer(
        site.name,
        layer.rank,
        layer.manifold.size,
        layer.dense_numel,
        error,
        layer.multiplications,
        layer.dense_multiplications,
    )
