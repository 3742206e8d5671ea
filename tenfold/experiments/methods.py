"""The ways to train a network: which weights are replaced, and what moves them."""

from __future__ import annotations

import torch
from torch import nn

from tenfold.experiments.config import TrainConfig
from tenfold.experiments.data import DataSet
from tenfold.experiments.models import build, dense_by_default
from tenfold.nn import factorize
from tenfold.optim import RankAdaptation, RiemannianSGD


def make_network(config: TrainConfig, data: DataSet) -> nn.Module:
    """The network of a run on the CPU, with weights drawn from torch's global generator.

    Parameters
    ----------
    config : TrainConfig
        Names the network, the method and the starting rank.
    data : DataSet
        Gives the sizes of images and the number of classes.

    Raises
    ------
    ValueError
        The network does not take such images, or no layer can have the rank asked for.
    """
    model = build(
        config.model, in_channels=data.in_channels, num_classes=data.num_classes, image_size=data.image_size
    )
    if config.method == "tucker":
        assert config.rank is not None  # a low-rank configuration always has one
        exclude = [] if config.factorize_all else dense_by_default(model)
        factorize(model, rank=config.rank, exclude=exclude, init="random")
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def make_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a run: SGD, on the manifolds for factored weights.

    Plain parameters move in the same way under every method: runs differ in the factored weights alone.
    """
    if config.method == "dense":
        return torch.optim.SGD(
            model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
    assert config.tau is not None  # a low-rank configuration always has one
    adaptation = RankAdaptation(tol=config.tau, every=config.adapt_every) if config.adapt_every else None
    return RiemannianSGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        rank_adaptation=adaptation,
        damping=config.damping or None,  # 0 is the exact geometry
    )


def make_scheduler(
    config: TrainConfig, optimizer: torch.optim.Optimizer, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate over `total_steps` steps, advanced after every step.

    ``"one-cycle"`` rises from a 25th of the rate to the rate over the first 30 % of the steps and falls along
    a cosine to nothing; ``"cosine"`` only falls; ``"constant"`` stays.
    """
    if config.schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=config.lr, total_steps=total_steps, cycle_momentum=False
        )
    if config.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total_steps)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
