r"""The LoRA format of PEFT: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``.

PEFT adds ``(alpha / r) B A`` to a weight. An update ``scale * U S V^T`` of rank ``r`` becomes

.. math:: S = P \Sigma Q^T, \qquad B = U P \Sigma^{1/2}, \qquad A = \Sigma^{1/2} Q^T V^T, \qquad
          \alpha = \text{scale} \cdot r,

layer by layer, since ranks differ. A convolution's ``A`` has the window and ``B`` is pointwise, so ``r`` is
the Tucker rank of the output channels.
"""

from __future__ import annotations

import json
import re
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tenfold.atomic import replacing
from tenfold.linalg import qr, svd
from tenfold.manifolds import FixedRankManifold, TreeManifold
from tenfold.nn.adapters import tensor_file
from tenfold.nn.adapters.adapt import describe, install
from tenfold.nn.adapters.checkpoint import checked_layer, placed
from tenfold.nn.adapters.layer import Adapter
from tenfold.nn.adapters.lookup import adapted_layers, adapter_of, check_known, check_name
from tenfold.nn.adapters.lora_config import read_configuration, scale_of
from tenfold.nn.adapters.report import AdapterReport
from tenfold.nn.adapters.tensor_file import TensorFile

__all__ = ["export_lora", "import_lora"]

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


def export_lora(
    model: nn.Module,
    folder: str | PathLike[str],
    name: str = "default",
    *,
    base_model: str | None = None,
    task_type: str | None = None,
) -> None:
    """Write one adapter so that ``peft.PeftModel.from_pretrained`` loads it beside the frozen model.

    Neither the frozen weights, nor other trained parameters, nor the present ``share`` are written. PEFT
    knows one dropout for all layers: the largest.

    Parameters
    ----------
    model : torch.nn.Module
        A model that has the adapter.
    folder : str or path
        Where the two files go; created where it is missing.
    name : str
        Name of the adapter.
    base_model : str or None
        For the configuration: name or path of the pretrained model.
    task_type : str or None
        For the configuration: PEFT's name of the task, for instance ``"SEQ_CLS"``.

    Raises
    ------
    ValueError
        If there is no such adapter, or PEFT would compute something else, as it does for dilated convolutions
        and for padding modes other than zeros.
    ImportError
        If safetensors is not installed.
    """
    check_known(model, [name])
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    dropout = 0.0
    for layer, module in adapted_layers(model).items():
        if name not in module.adapters:
            continue
        _check_geometry(layer, module)
        adapter = adapter_of(module, name)
        b, a = _loose(adapter)
        key = f"{_PREFIX}{layer}.lora"
        tensors[f"{key}_A.weight"], tensors[f"{key}_B.weight"] = a, b
        rank = a.shape[0]
        ranks[layer], alphas[layer] = rank, _whole(adapter.scale * rank)
        dropout = max(dropout, adapter.dropout.p)
    # Longest first: PEFT takes the first pattern that the end of a layer's name fits.
    layers = sorted(ranks, key=len, reverse=True)
    first = layers[-1]
    uniform = len({(ranks[layer], alphas[layer]) for layer in layers}) == 1
    config = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "target_modules": _targets(model, list(ranks)),
        "r": ranks[first],
        "lora_alpha": alphas[first],
        "rank_pattern": {} if uniform else {layer: ranks[layer] for layer in layers},
        "alpha_pattern": {} if uniform else {layer: alphas[layer] for layer in layers},
        "lora_dropout": dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
    }
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with replacing(target / _CONFIG) as temporary:
        temporary.write_text(json.dumps(config, indent=2), encoding="utf-8")
        tensor_file.write(target / _WEIGHTS, tensors, {"format": "pt"})


def import_lora(model: nn.Module, folder: str | PathLike[str], *, name: str = "default") -> AdapterReport:
    """Give a model the adapter in a folder that PEFT saved; it trains and adapts its ranks like any other.

    Names and shapes in the file are compared with the model before a tensor is read. Parameters are
    frozen as by :func:`adapt`.

    Parameters
    ----------
    model : torch.nn.Module
        The pretrained model, without PEFT's wrapper; with other adapters or without.
    folder : str or path
        The folder.
    name : str
        Name for the adapter.

    Returns
    -------
    AdapterReport
        Layers and ranks. A rank is PEFT's, lowered where the weight has none so high.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If a file is corrupt, is not plain LoRA, or does not fit the model; the model is then unchanged.
    ImportError
        If safetensors is not installed.
    """
    check_name(name)
    source = Path(folder)
    config = read_configuration(source / _CONFIG)
    with tensor_file.opened(source / _WEIGHTS) as file:
        parts = re.compile(re.escape(_PREFIX) + r"(.+)\.lora_[AB]\.weight")
        matches = {key: parts.fullmatch(key) for key in file.shapes}
        foreign = sorted(key for key, match in matches.items() if match is None)
        if foreign or not matches:
            raise ValueError(f"{file.path} holds what is not a LoRA factor: {foreign or 'nothing'}")
        new = {}
        for layer in sorted({match[1] for match in matches.values() if match is not None}):
            update = checked_layer(model, layer, name, file.path)
            _check_geometry(layer, model.get_submodule(layer))
            rank = _rank(file, layer, update.layout.weight)
            a, b = (file.read(f"{_PREFIX}{layer}.lora_{part}.weight") for part in "AB")
            try:
                scale = scale_of(config, layer, rank)
                update = placed(update, *_packed(update.manifold, b, a))
            except (ValueError, OverflowError) as error:
                raise ValueError(f"{source / _CONFIG} and {file.path}: {error}") from error
            new[layer] = Adapter(update, scale, config["lora_dropout"])
    install(model, name, new)
    return describe(model, name)


def _targets(model: nn.Module, layers: list[str]) -> str | list[str]:
    """The layers for PEFT, which takes a name in a list for the end of one, and a string for a pattern."""
    ends = tuple(f".{layer}" for layer in layers)
    if any(name.endswith(ends) for name, _ in model.named_modules()):
        return "|".join(f"({re.escape(layer)})" for layer in layers)
    return layers


def _loose(adapter: Adapter) -> tuple[torch.Tensor, torch.Tensor]:
    """``B`` and ``A`` of equal norms, as PEFT stores them."""
    manifold, packed = adapter.update.manifold, adapter.update.weight.detach()
    core, left, right = (factor.double() for factor in manifold.unpack_tensor(packed))
    p, values, q = svd(core.flatten(1))
    root = values.sqrt()
    b, a = left @ (p * root), root[:, None] * q[: len(root)]
    if isinstance(manifold, FixedRankManifold):
        a = a @ right.mT
    else:
        a = torch.einsum("rikl,ni->rnkl", a.reshape(len(root), *core.shape[1:]), right)
        b = b[..., None, None]
    return b.to(packed.dtype).contiguous(), a.to(packed.dtype).contiguous()


def _packed(lowest: TreeManifold, b: torch.Tensor, a: torch.Tensor) -> tuple[TreeManifold, torch.Tensor]:
    """The point that is ``B A``, and its manifold."""
    if not isinstance(lowest, FixedRankManifold):
        tensor = torch.einsum("or,rikl->oikl", b[..., 0, 0], a)
        manifold, point = lowest.approximate(tensor, max_rank=(b.shape[1], lowest.shape[1]))
        assert isinstance(manifold, TreeManifold)
        return manifold, point
    (left, upper), (right, lower) = qr(b), qr(a.mT)
    core = upper @ lower.mT
    rank = min(core.shape)
    if core.shape != (rank, rank):  # more columns than the weight has rows
        p, values, q = svd(core)
        left, core, right = left @ p[:, :rank], values[:rank].diag(), right @ q[:rank].mT
    manifold = lowest.with_rank(rank)
    return manifold, manifold.pack_point(core, left, right)


def _rank(file: TensorFile, layer: str, weight: tuple[int, ...]) -> int:
    """The rank of a layer's factors, whose shapes must fit its weight."""
    keys = [f"{_PREFIX}{layer}.lora_{part}.weight" for part in "AB"]
    for key in keys:
        if key not in file.shapes:
            raise ValueError(f"{file.path} has no {key!r}")
    a, b = (file.shapes[key] for key in keys)
    rank = a[0] if a else 0
    window = (1,) * (len(weight) - 2)
    if rank < 1 or a != (rank, *weight[1:]) or b != (weight[0], rank, *window):
        raise ValueError(f"{file.path}: factors of {layer!r} of the shapes {a} and {b} do not make {weight}")
    return rank


def _check_geometry(layer: str, module: Any) -> None:
    if isinstance(module, nn.Conv2d) and (module.padding_mode != "zeros" or set(module.dilation) != {1}):
        raise ValueError(
            f"PEFT ignores dilation={module.dilation} and padding_mode={module.padding_mode!r} of {layer!r}, "
            "so its adapters compute something else there"
        )


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number
