"""Small problems with known answers, shared by the optimizer tests."""

import geoopt
import torch

from tenfold.manifolds import (
    FixedRankManifold,
    HierarchicalTuckerManifold,
    LowRankManifold,
    TensorTrainManifold,
    TuckerManifold,
)

MANIFOLDS = [
    TuckerManifold((6, 5, 4), (3, 2, 2)),
    TuckerManifold((7, 6, 3, 3), (3, 4), modes=(0, 1)),
    FixedRankManifold((7, 5), 3),
    TensorTrainManifold((4, 5, 4, 3), (2, 3, 2)),
    TensorTrainManifold((3, 4, 2, 5, 2, 3), (3, 4), rows=3),
    HierarchicalTuckerManifold((4, 3, 4, 3), (3, 2, 3, 2, 2)),
]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parameter(manifold: LowRankManifold, seed: int = 0, dtype: torch.dtype = torch.float64):
    point = manifold.random(dtype=dtype, generator=generator(seed))
    return geoopt.ManifoldParameter(point, manifold=manifold)


def target(manifold: LowRankManifold, seed: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(manifold.shape, dtype=dtype, generator=generator(seed))


def dense(p) -> torch.Tensor:
    return p.manifold.to_dense(p.detach())


def distance(p, goal: torch.Tensor) -> torch.Tensor:
    """The quadratic loss; its Euclidean gradient is ``W - goal`` and its smoothness constant 1."""
    return 0.5 * (p.manifold.to_dense(p) - goal).square().sum()


def descend(optimizer, p, goal: torch.Tensor, steps: int) -> list[float]:
    """Run some steps and return the losses before each of them and after the last."""
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = distance(p, goal)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    return [*losses, distance(p, goal).item()]
