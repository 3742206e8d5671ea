"""Short trainings that one process runs on joint batches, or several on their parts of them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from tenfold.distributed import DistributedDataParallel
from tenfold.manifolds import is_low_rank, rank_tuple
from tenfold.nn import Conv2d, Linear
from tenfold.optim import (
    TDLRT,
    RankAdaptation,
    RankPolicy,
    RiemannianAdam,
    RiemannianAdamW,
    RiemannianCG,
    RiemannianLBFGS,
    RiemannianSGD,
    TangentMuon,
    TDLRTAdamW,
)

BATCH = 16
STEPS = 12


@dataclass(frozen=True)
class Tides(RankPolicy):
    """Ranks that rise and fall from decision to decision."""

    def wanted(self, pending, limits, step):
        high = step // self.every % 2 == 0
        return [tuple(3 if high else 2 for _ in item.truncation.singular_values) for item in pending]


@dataclass(frozen=True)
class TidalTolerance(RankAdaptation):
    """A tolerance that rises and falls from step to step."""

    def tolerance(self, step):
        return self.tol if step % 2 else self.tol / 100


TIDES = Tides()
SLOW_TIDES = Tides(every=2)
EXACT = {
    "sgd": lambda net: RiemannianSGD(net.parameters(), lr=0.02, momentum=0.9, rank_adaptation=TIDES),
    "damped sgd": lambda net: RiemannianSGD(
        net.parameters(), lr=0.02, momentum=0.9, damping=0.1, rank_adaptation=TIDES
    ),
    "by tolerance": lambda net: TDLRT(
        net.parameters(),
        lr=0.1,
        integrator="fused",
        model=net,
        rank_adaptation=TidalTolerance(0.5, max_rank=4),
    ),
    "adam": lambda net: RiemannianAdam(net.parameters(), lr=0.01, rank_adaptation=TIDES),
    "adamw": lambda net: RiemannianAdamW(net.parameters(), lr=0.01, rank_adaptation=TIDES),
    "muon": lambda net: TangentMuon(net.parameters(), lr=0.01, rank_adaptation=TIDES),
    "tdlrt two-pass": lambda net: TDLRT(net.parameters(), lr=0.02, momentum=0.9, rank_adaptation=TIDES),
    "tdlrt parallel": lambda net: TDLRT(
        net.parameters(), lr=0.02, integrator="parallel", rank_adaptation=TIDES
    ),
    "tdlrt core steps": lambda net: TDLRT(
        net.parameters(), lr=0.02, integrator="fused", model=net, rank_adaptation=SLOW_TIDES, core_steps=2
    ),
    "tdlrt-adamw fused": lambda net: TDLRTAdamW(
        net.parameters(), lr=0.01, integrator="fused", model=net, rank_adaptation=TIDES
    ),
    "cg": lambda net: RiemannianCG(net.parameters(), max_iter=1),
    "lbfgs": lambda net: RiemannianLBFGS(net.parameters(), max_iter=1),
}
LINE_SEARCH = ("cg", "lbfgs")


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        Conv2d(3, 6, 3, rank=3, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        Linear(6 * 16, 10, rank=3, format="fixed-rank"),
        nn.Tanh(),
        nn.Linear(10, 4),
    ).double()


def batch(step: int):
    generator = torch.Generator().manual_seed(100 + step)
    return (
        torch.randn(BATCH, 3, 4, 4, generator=generator, dtype=torch.float64),
        torch.randn(BATCH, 4, generator=generator, dtype=torch.float64),
    )


def mine(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a batch that belongs to this process."""
    if not dist.is_initialized():
        return tensor
    return tensor.chunk(dist.get_world_size())[dist.get_rank()]


def ranks(net: nn.Module):
    return [rank_tuple(p.manifold.rank) for p in net.parameters() if is_low_rank(p)]


def dense(net: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: p.manifold.to_dense(p.detach()) if is_low_rank(p) else p.detach().clone()
        for name, p in net.named_parameters()
    }


def train(kind: str, *, accumulate: int = 1, no_sync: bool = False, steps: int = STEPS):
    """Mean losses, rank changes, weights and packed parameters of a training."""
    together = dist.is_initialized()
    net = network(dist.get_rank() if together else 0)  # process 0 decides on the start
    model = DistributedDataParallel(net) if together else net
    optimizer = EXACT[kind](net)
    losses, changes, present = [], 0, ranks(net)
    for step in range(2 * steps if "core steps" in kind else steps):
        # A line search needs the same problem in every step.
        x, y = batch(0 if kind in LINE_SEARCH else step)

        def closure(x=x, y=y):
            optimizer.zero_grad()
            total = 0.0
            for k, (part, goal) in enumerate(zip(x.chunk(accumulate), y.chunk(accumulate), strict=True)):
                silent = no_sync and together and k < accumulate - 1
                with model.no_sync() if silent else contextlib.nullcontext():
                    loss = (model(mine(part)) - mine(goal)).square().mean() / accumulate
                    loss.backward()
                total += loss.detach()
            return total

        if kind in LINE_SEARCH:
            loss = optimizer.step(closure)
            if step % 2:
                optimizer.grow_ranks(3, generator=torch.Generator().manual_seed(step))
            else:
                optimizer.adapt_ranks(TIDES)
        elif "two-pass" in kind:
            loss = optimizer.step(closure)
        else:
            loss = closure()
            optimizer.step()
        if together:
            dist.all_reduce(loss)
            loss /= dist.get_world_size()
        losses.append(loss.item())
        changes += ranks(net) != present
        present = ranks(net)
    return {
        "losses": losses,
        "changes": changes,
        "dense": dense(net),
        "packed": {name: p.detach().clone() for name, p in net.named_parameters()},
        "bytes": model.manifolds.bytes_reduced if together else 0,
    }


def train_all(kinds):
    return {kind: train(kind) for kind in kinds}


def played(scenes):
    """What each scene returns, one after the other in step with all processes."""
    answers = {}
    for name, scene in scenes.items():
        answers[name] = scene()
        dist.barrier()
    return answers
