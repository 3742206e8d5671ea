"""The ways to train a network: which weights are replaced, and what moves them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tenfold.experiments.combinations import is_loose, is_pruned, moves_on_the_beat
from tenfold.experiments.config import TrainConfig
from tenfold.experiments.data import DataSet
from tenfold.experiments.given_ranks import ranks_of_layers
from tenfold.experiments.loose import loosen, start_on_manifolds
from tenfold.experiments.loose_layer import LooseLayer, StartRank
from tenfold.experiments.models import build, dense_by_default
from tenfold.experiments.plain_muon import PlainMuon
from tenfold.experiments.pruning import prune_at_start
from tenfold.experiments.rounds import round_ends
from tenfold.experiments.starting_rank import rank_for_compression
from tenfold.optim import (
    TDLRT,
    BudgetAdaptation,
    RankAdaptation,
    RankPolicy,
    RiemannianAdamW,
    RiemannianOptimizer,
    RiemannianSGD,
    TangentMuon,
    TDLRTAdamW,
    TDLRTMuon,
)

_SECOND_BETA = 0.999
_ON_MANIFOLDS: dict[str, type[RiemannianOptimizer]] = {
    "sgd": RiemannianSGD,
    "adamw": RiemannianAdamW,
    "muon": TangentMuon,
    "tdlrt": TDLRT,
    "tdlrt-adamw": TDLRTAdamW,
    "tdlrt-muon": TDLRTMuon,
}


def make_network(config: TrainConfig, data: DataSet) -> nn.Module:
    """The network of a run on the CPU, with weights drawn from torch's global generator.

    Parameters
    ----------
    config : TrainConfig
        Names the network, the method and the starting rank.
    data : DataSet
        Gives the sizes of images and the number of classes; a few images to SNIP and GraSP.

    Raises
    ------
    ValueError
        The network does not take such images, the compression is out of reach, or ranks are given for other
        layers, or ranks that these do not have.
    """
    model = build(
        config.model, in_channels=data.in_channels, num_classes=data.num_classes, image_size=data.image_size
    )
    names = _replaced(model, config)
    if config.method == "tucker":
        start_on_manifolds(model, _ranks(model, names, config), config.decay)
    elif is_loose(config.method):
        loosen(model, config.method, _ranks(model, names, config), config.decay)
    elif is_pruned(config.method):
        prune_at_start(model, config, names, data)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def make_optimizer(config: TrainConfig, model: nn.Module, total_steps: int) -> torch.optim.Optimizer:
    """The optimizer of a run, on the manifolds for factored weights.

    Plain parameters move in the same way under every method with the same optimizer: runs differ in the
    factored weights alone. ``"muon"`` moves by AdamW what is factored by none of the methods.

    Raises
    ------
    ValueError
        Ranks are to be adapted, and no step decides on them in time.
    """
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer.endswith("adamw"):
        options["betas"] = (config.momentum, _SECOND_BETA)
    else:
        options["momentum"] = config.momentum
    if config.method != "tucker" and config.optimizer == "muon":
        matrices = _matrices(model, config)
        chosen = {id(p) for p in matrices}
        return PlainMuon(matrices, [p for p in model.parameters() if id(p) not in chosen], **options)
    if config.method != "tucker":
        plain = torch.optim.SGD if config.optimizer == "sgd" else torch.optim.AdamW
        return plain(model.parameters(), **options)
    if moves_on_the_beat(config.optimizer):
        assert config.adapt_every is not None  # the configuration sees to it
        # The last interval keeps the ranks, so that the network does not end in augmented bases.
        options["rank_adaptation"] = _rank_policy(config, total_steps, total_steps - config.adapt_every)
        options |= {"integrator": "fused", "model": model, "core_steps": config.adapt_every}
    else:
        options["rank_adaptation"] = _rank_policy(config, total_steps)
        options["damping"] = config.damping or None  # 0 is the exact geometry
    return _ON_MANIFOLDS[config.optimizer](model.parameters(), **options)


def make_scheduler(
    config: TrainConfig, optimizer: torch.optim.Optimizer, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate of a run of `total_steps` steps; of its first round, if there are rounds."""
    steps = round_ends(total_steps)[0] if config.method == "prune-imp" else total_steps
    return schedule_over(config, optimizer, steps)


def schedule_over(
    config: TrainConfig, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate over `steps` steps, advanced after every step.

    ``"one-cycle"`` rises from a 25th of the rate to the rate over the first 30 % of the steps and falls along
    a cosine to nothing; ``"cosine"`` only falls; ``"constant"`` stays.
    """
    if config.schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=config.lr, total_steps=steps, cycle_momentum=False
        )
    if config.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def _replaced(model: nn.Module, config: TrainConfig) -> list[str]:
    """Names of the layers that are factored or pruned."""
    kept = [] if config.factorize_all else dense_by_default(model)
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return [name for name in layers if name not in kept]


def _matrices(model: nn.Module, config: TrainConfig) -> list[nn.Parameter]:
    """Loose factors, or the dense weights that other methods factor."""
    if config.method == "dense":
        layers = [model.get_submodule(name) for name in _replaced(model, config)]
    else:
        layers = [module for module in model.modules() if isinstance(module, LooseLayer)]
    return [p for layer in layers for p in layer.parameters() if p.ndim > 1]


def _ranks(model: nn.Module, names: list[str], config: TrainConfig) -> Mapping[str, StartRank]:
    """The rank at which each layer starts."""
    if config.ranks is not None:
        return ranks_of_layers(config.ranks, names)
    if config.compression is None:
        assert config.rank is not None  # a low-rank configuration has a rank or a compression
        return dict.fromkeys(names, config.rank)
    shapes = [tuple(model.get_submodule(name).get_parameter("weight").shape) for name in names]
    start = config.compression if config.start_compression is None else config.start_compression
    if config.per_layer:
        ranks = [rank_for_compression(config.method, [shape], start) for shape in shapes]
        return dict(zip(names, ranks, strict=True))
    return dict.fromkeys(names, rank_for_compression(config.method, shapes, start))


def _rank_policy(config: TrainConfig, total_steps: int, stop: int | None = None) -> RankPolicy | None:
    """By the tolerance, or without one by the compression; none where ranks are not adapted."""
    if not config.adapt_every:
        return None
    start = config.adapt_start or 0
    ending = [n for n in ("start_compression", "oversampling") if getattr(config, n) is not None]
    if ending:
        stop = total_steps // 2
        if stop - start < config.adapt_every:
            raise ValueError(
                f"{ending[0]}={getattr(config, ending[0]):g} has no end: with adapt_every="
                f"{config.adapt_every} no ranks are decided between step {start} and the middle "
                f"of the {total_steps} steps"
            )
    end = total_steps if stop is None else stop
    if end - start < config.adapt_every:
        name = "adapt_start" if start else "adapt_every"
        raise ValueError(
            f"{name}={getattr(config, name)} leaves no step that decides on ranks: with adapt_every="
            f"{config.adapt_every} there is none after step {start} and up to step {max(end, 0)} of the "
            f"{total_steps}"
        )
    beat: dict[str, Any] = {
        "every": config.adapt_every,
        "start": start,
        "stop": None if stop is None else max(start, stop),
        "oversampling": config.oversampling or 0,
    }
    if config.min_rank is not None:
        beat["min_rank"] = config.min_rank
    if config.tau is not None:
        return RankAdaptation(tol=config.tau, **beat)
    assert config.compression is not None  # one of the two decides
    if config.start_compression is None:
        return BudgetAdaptation(config.compression, **beat)
    return BudgetAdaptation(config.start_compression, final_compression=config.compression, **beat)
