"""Small problems with known answers, shared by the optimizer tests."""

import geoopt
import torch

import tenfold
from tenfold.manifolds import (
    FixedRankManifold,
    HierarchicalTuckerManifold,
    LowRankManifold,
    TensorTrainManifold,
    TuckerManifold,
)
from tenfold.optim import TDLRT, RankAdaptation

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


def toy(decay: float, start: int = 8) -> tuple[geoopt.ManifoldParameter, torch.Tensor]:
    """A 20 x 20 x 20 goal of rank 4, and a start whose singular values decay by `decay` per index."""
    truth = TuckerManifold((20, 20, 20), 4)
    goal = truth.to_dense(truth.random(dtype=torch.float64, generator=generator(0)))
    manifold = TuckerManifold((20, 20, 20), start)
    core, *factors = manifold.unpack_tensor(manifold.random(dtype=torch.float64, generator=generator(1)))
    scale = decay ** -torch.arange(start, dtype=torch.float64)
    core = core * scale[:, None, None] * scale[:, None] * scale
    return geoopt.ManifoldParameter(manifold.pack_point(core, *factors), manifold=manifold), goal * (
        20 / goal.norm()
    )


class Tensor(torch.nn.Module):
    """A module whose output is the tensor itself, so that the loss is a plain function of it."""

    def __init__(self, manifold: LowRankManifold, point: torch.Tensor | None = None):
        super().__init__()
        point = manifold.random(dtype=torch.float64, generator=generator(0)) if point is None else point
        tenfold.nn.declare(self, "weight", manifold, point)

    def forward(self):
        return self.weight.manifold.to_dense(self.weight)


def advance(optimizer, evaluate) -> float:
    """One step of any integrator of TDLRT; returns the loss before it."""

    def closure():
        optimizer.zero_grad()
        loss = evaluate()
        loss.backward()
        return loss

    if optimizer.integrator == "two-pass":
        return optimizer.step(closure).item()
    loss = closure().item()
    optimizer.step()
    return loss


def run(optimizer, net: Tensor, goal: torch.Tensor, steps: int) -> list[float]:
    """Run some steps of TDLRT and return the losses before each of them."""
    return [advance(optimizer, lambda: 0.5 * (net() - goal).square().sum()) for _ in range(steps)]


def integrate(integrator: str, net: Tensor, cls=TDLRT, **options):
    """TDLRT with an integrator on a network."""
    options.setdefault("rank_adaptation", RankAdaptation(0.0))
    return cls(
        net.parameters(), integrator=integrator, model=net if integrator == "fused" else None, **options
    )
