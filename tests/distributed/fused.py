"""Processes that train a model whose normalisations are inside of its convolutions."""

from __future__ import annotations

import torch
from torch import nn

from tenfold.distributed import DistributedDataParallel
from tenfold.nn import Conv2d, fuse_normalization, recompute_activations
from tenfold.optim import RiemannianSGD


def train_fused(fused: bool) -> list[torch.Tensor]:
    """The state after some steps, each process with data of its own."""
    torch.manual_seed(0)
    model = nn.Sequential(
        Conv2d(6, 6, 3, rank=2), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(3)
    ).double()
    model(torch.randn(2, 6, 6, 6, dtype=torch.float64))
    if fused:
        fuse_normalization(model)
        recompute_activations(model)
    parallel = DistributedDataParallel(model)
    optimizer = RiemannianSGD(parallel.parameters(), lr=0.05, momentum=0.9)
    torch.manual_seed(1 + torch.distributed.get_rank())
    for _ in range(3):
        optimizer.zero_grad()
        parallel(torch.randn(4, 6, 6, 6, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    return [model.state_dict()[name] for name in sorted(model.state_dict())]
