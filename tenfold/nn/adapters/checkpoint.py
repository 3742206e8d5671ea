"""Files that hold one adapter and nothing of the model."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tenfold.manifolds import TreeManifold, move_
from tenfold.nn.adapters import tensor_file
from tenfold.nn.adapters.adapt import describe, install
from tenfold.nn.adapters.layer import Adapter
from tenfold.nn.adapters.lookup import adapted_layers, adapter_of, check_known, check_name, kind_of, why_not
from tenfold.nn.adapters.report import AdapterReport
from tenfold.nn.adapters.tensor_file import TensorFile
from tenfold.nn.layer import LowRankLayer
from tenfold.untrusted import values
from tenfold.untrusted.text import parse_json

__all__ = ["checked_layer", "load_adapter", "placed", "save_adapter"]

_FORMAT, _VERSION = "tenfold adapter", 1
_ORTHONORMAL = 1e-3
"""How far from orthonormal the bases of a file may be; those of a half precision file are nearer."""
_OPTIONS = values.record({"scale": values.finite, "dropout": values.finite})


def save_adapter(model: nn.Module, path: str | PathLike[str], name: str = "default") -> None:
    """Write one adapter to a safetensors file, replacing what was there in one step.

    The tensors are the factors, ``<layer>.S``, ``.U`` and ``.V`` of a linear layer and ``<layer>.core``,
    ``.U0`` and ``.U1`` of a convolution; their shapes carry the ranks. Scale and dropout stand in the header.
    Neither the frozen weights nor the present ``share`` of the adapter are saved.

    Parameters
    ----------
    model : torch.nn.Module
        A model that has the adapter.
    path : str or path
        The file; its folder must exist.
    name : str
        Name of the adapter.

    Raises
    ------
    ValueError
        If there is no such adapter.
    ImportError
        If safetensors is not installed.
    """
    check_known(model, [name])
    tensors: dict[str, torch.Tensor] = {}
    layers = {}
    for layer, module in adapted_layers(model).items():
        if name not in module.adapters:
            continue
        adapter = adapter_of(module, name)
        manifold, packed = adapter.update.manifold, adapter.update.weight.detach()
        for part, factor in zip(manifold.factor_names, manifold.unpack_tensor(packed), strict=True):
            tensors[f"{layer}.{part}"] = factor.clone()
        layers[layer] = {"scale": adapter.scale, "dropout": adapter.dropout.p}
    header = {"version": _VERSION, "name": name, "layers": layers}
    tensor_file.write(Path(path), tensors, {"format": _FORMAT, "adapter": json.dumps(header)})


def load_adapter(model: nn.Module, path: str | PathLike[str], *, name: str | None = None) -> AdapterReport:
    """Give a model the adapter that :func:`save_adapter` wrote.

    Names and shapes in the file are compared with the model before a tensor is read. Parameters are
    frozen as by :func:`adapt`.

    Parameters
    ----------
    model : torch.nn.Module
        A model with the layers of the one that was saved, with other adapters or without.
    path : str or path
        The file.
    name : str or None
        Name for the adapter; None means the one that it was saved under.

    Returns
    -------
    AdapterReport
        Layers and ranks.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is corrupt, holds something else, or does not fit the model; the model is then unchanged.
    ImportError
        If safetensors is not installed.
    """
    with tensor_file.opened(Path(path)) as file:
        header = _header(file)
        name = header["name"] if name is None else name
        try:
            check_name(name)
        except ValueError as error:
            raise ValueError(f"{file.path}: {error}") from error
        new: dict[str, Adapter] = {}
        expected: set[str] = set()
        for layer, options in header["layers"].items():
            update = checked_layer(model, layer, name, file.path)
            factors = [f"{layer}.{part}" for part in update.manifold.factor_names]
            expected.update(factors)
            manifold = _manifold(update.manifold, factors, file)
            point = manifold.pack_point(*(file.read(factor) for factor in factors))
            fits, reason = manifold.check_point_on_manifold(point, explain=True, atol=_ORTHONORMAL, rtol=0.0)
            if not fits:
                raise ValueError(f"{file.path}: {layer!r}: {reason}")
            new[layer] = Adapter(placed(update, manifold, point), options["scale"], options["dropout"])
        foreign = sorted(set(file.shapes) - expected)
        if foreign:
            raise ValueError(f"{file.path} holds tensors of no layer: {foreign}")
    install(model, name, new)
    return describe(model, name)


def checked_layer(model: nn.Module, layer: str, name: str, path: Path) -> LowRankLayer:
    """A zero update of rank 1 for a layer that a file names; ValueError if it can have none.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    layer : str
        Name of the layer.
    name : str
        Name of the adapter.
    path : Path
        The file, for the message.

    Returns
    -------
    LowRankLayer
        Not yet part of the model.
    """
    try:
        module = model.get_submodule(layer)
    except AttributeError:
        module = model
    if module is model:
        raise ValueError(f"{path}: the model has no layer {layer!r}")
    reason = why_not(model, layer, name)
    if reason:
        raise ValueError(f"{path}: {layer!r} cannot have the adapter {name!r}: {reason}")
    update = kind_of(module).draw(module, 1)
    if update.weight.is_meta:
        raise ValueError(f"{path}: {layer!r} is on the meta device, which takes no numbers")
    return update


def placed(update: LowRankLayer, manifold: TreeManifold, point: torch.Tensor) -> LowRankLayer:
    """The update at another rank, with a point that may be of another precision; or ValueError."""
    here = point.to(update.weight)
    if not torch.isfinite(here).all():
        raise ValueError(f"numbers of the adapter overflow in {here.dtype}")
    move_(update.weight, manifold, here)
    return update


def _header(file: TensorFile) -> dict[str, Any]:
    """What :func:`save_adapter` wrote beside the tensors, or ValueError."""
    if file.metadata.get("format") != _FORMAT:
        raise ValueError(f"{file.path} was not written by save_adapter")
    try:
        header = parse_json(file.metadata["adapter"])
        version, layers = header["version"], header["layers"]
        for options in layers.values():
            _OPTIONS("the options of a layer", options)
            if not 0 <= options["dropout"] < 1:
                raise ValueError(f"a dropout of {options['dropout']}")
        values.text("name", header["name"])
        if not layers:
            raise ValueError("no layers")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"the header of {file.path} is corrupt: {error}") from error
    if type(version) is not int or version != _VERSION:
        raise ValueError(
            f"{file.path} has the version {values.brief(version)}, this release reads {_VERSION}"
        )
    return dict(header)


def _manifold(lowest: TreeManifold, factors: list[str], file: TensorFile) -> TreeManifold:
    """The manifold on which factors of these shapes live, or ValueError."""
    for factor in factors:
        if len(file.shapes.get(factor, ())) < 2:
            raise ValueError(f"{file.path} has no factor {factor!r}, or one of fewer than two axes")
    shapes = [file.shapes[factor] for factor in factors]
    try:
        manifold = lowest.with_rank([shapes[group[0]][-1] for group in lowest.tree.ranks])
    except ValueError as error:
        raise ValueError(f"{file.path}: {factors[0]!r} and its neighbours: {error}") from error
    for factor, found, wanted in zip(factors, shapes, manifold.factor_shapes, strict=True):
        if found != wanted:
            raise ValueError(f"{file.path}: {factor!r} has the shape {found}, the model needs {wanted}")
    return manifold
