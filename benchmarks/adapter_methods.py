"""Adapters of a pretrained model and their optimizers, by method, as the comparisons of adapters train them.

Every method is given a model, the layers to adapt and a number of parameters, that of LoRA at some rank.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from tenfold.manifolds import is_low_rank
from tenfold.nn.adapters import adapt, describe
from tenfold.optim import BudgetAdaptation, RiemannianAdam

METHODS = ("tenfold", "tenfold-fixed", "tenfold-damped", "lora", "adalora")

Row = dict[str, Any]
"""What a run has found, or what it is."""


@dataclass
class Adapted:
    """A model with adapters.

    Attributes
    ----------
    model : torch.nn.Module
        The model to train.
    optimizer : torch.optim.Optimizer
        Of adapters and head.
    after : callable
        To be called with the number of the step after each.
    found : callable
        Numbers of parameters and ranks as they are.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    after: Callable[[int], None]
    found: Callable[[], Row]


def layers(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the linear layers and convolutions that a pattern meets."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and any(fnmatchcase(name, p) for p in patterns)
    ]


def lora_parameters(model: nn.Module, names: Iterable[str], rank: int) -> int:
    """What LoRA of a rank stores for some layers."""
    weights = [model.get_submodule(name).weight for name in names]
    return sum(rank * (weight[0].numel() + len(weight)) for weight in weights)


def with_adapters(
    method: str,
    model: nn.Module,
    patterns: Sequence[str],
    *,
    rank: int,
    steps: int,
    lr: float,
    head: Sequence[str] = (),
    head_lr: float = 0.0,
    every: int = 5,
) -> Adapted:
    """Adapt a model in place.

    Parameters
    ----------
    method : str
        One of :data:`METHODS`; AdaLoRA has no convolutions.
    model : torch.nn.Module
        Pretrained; what is neither adapter nor head is frozen.
    patterns : sequence of str
        Of the names of the layers to adapt.
    rank : int
        Of LoRA, whose number of parameters is the budget of the methods with a budget.
    steps : int
        Of the whole training.
    lr, head_lr : float
        Learning rates of adapters and head.
    head : sequence of str
        Names of the modules that are trained as they are.
    every : int
        Steps between two decisions on ranks.
    """
    names = layers(model, patterns)
    if method.startswith("tenfold"):
        return _on_manifolds(method, model, names, rank, steps, lr, head, head_lr, every)
    import peft

    common: dict[str, Any] = {"target_modules": names, "modules_to_save": list(head) or None}
    if method == "lora":
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, **common)
    else:
        config = peft.AdaLoraConfig(
            init_r=rank + rank // 2,
            target_r=rank,
            lora_alpha=4 * rank,
            tinit=steps // 10,
            tfinal=steps // 4,
            deltaT=every,
            total_step=steps,
            **common,
        )
    wrapped = peft.get_peft_model(model, config)
    trained = [(name, p) for name, p in wrapped.named_parameters() if p.requires_grad]
    updates = [p for name, p in trained if "lora_" in name]
    heads = [p for name, p in trained if "lora_" not in name]

    def after(step: int) -> None:
        if method == "adalora":
            wrapped.base_model.update_and_allocate(step)

    def found() -> Row:
        if method == "lora":
            return {"parameters": sum(p.numel() for p in updates)}
        ranks, stored = {}, 0
        for name, p in wrapped.named_parameters():
            if "lora_E" in name:
                layer = wrapped.get_submodule(name.rpartition(".lora_E")[0])
                kept = int((p != 0).sum())
                ranks[name.removeprefix("base_model.model.").rpartition(".lora_E")[0]] = kept
                stored += kept * (layer.in_features + layer.out_features + 1)
        return {"parameters": stored, "while_training": sum(p.numel() for p in updates), "ranks": ranks}

    return Adapted(wrapped, torch.optim.Adam(_groups(updates, lr, heads, head_lr)), after, found)


def _on_manifolds(
    method: str,
    model: nn.Module,
    names: list[str],
    rank: int,
    steps: int,
    lr: float,
    head: Sequence[str],
    head_lr: float,
    every: int,
) -> Adapted:
    allowed = lora_parameters(model, names, rank)
    report = adapt(model, rank=rank, include=names, trainable=[f"{name}.*" for name in head])
    policy = None
    if method == "tenfold":
        stop = max(every, 3 * steps // 4)
        allowance = report.compression(allowed)
        policy = BudgetAdaptation(allowance, every=every, stop=stop, min_rank=1)
    trained = [p for p in model.parameters() if p.requires_grad]
    updates, heads = ([p for p in trained if is_low_rank(p) is low] for low in (True, False))
    # Damping is relative to the singular values, and from zero it would let the bases turn without bound.
    damping = 0.1 if method == "tenfold-damped" else None
    groups = _groups(updates, lr, heads, head_lr)
    optimizer = RiemannianAdam(groups, damping=damping, rank_adaptation=policy)

    def found() -> Row:
        now = describe(model)
        return {"parameters": now.stored, "ranks": {row.name: _plain(row.rank) for row in now.layers}}

    return Adapted(model, optimizer, lambda step: None, found)


def _plain(rank: Sequence[int]) -> int | list[int]:
    """The rank of a matrix as a number."""
    return rank[0] if len(rank) == 1 else list(rank)


def _groups(
    updates: list[nn.Parameter], lr: float, heads: list[nn.Parameter], head_lr: float
) -> list[dict[str, Any]]:
    groups = [{"params": updates, "lr": lr}, {"params": heads, "lr": head_lr}]
    return [group for group in groups if group["params"]]


def ramp(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rates rise over the first tenth of the steps, and fall to nothing."""
    rising = max(1, steps // 10)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rising, (steps - step) / max(1, steps - rising))
    )


def autocast(options: argparse.Namespace) -> Any:
    """The context of the forward pass, by ``--amp`` and ``--device``."""
    return torch.autocast(torch.device(options.device).type, torch.bfloat16) if options.amp else nullcontext()
