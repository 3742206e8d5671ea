"""A long training with ranks that change all the time: is memory flat, do bases stay orthonormal?

    OMP_NUM_THREADS=1 python benchmarks/soak.py [--steps 100000] [--samples 20]

A small network with a Tucker convolution, a fixed-rank and a Tensor Train linear layer follows a dense one on
new random inputs in every step. Five optimizers take turns, each on its own copy, until all together have
taken the steps. In every third step ranks are drawn anew between 1 and twice what they are, so that they rise
and fall all the time. At every sample the process is measured: its resident memory, its private memory (what
no file backs, with what is swapped out), tensors and graphs that are alive, objects known to the garbage
collector, parameters and state of the optimizers, the distance of points from their projection on the
manifold, and that of momentum from its tangent space. The exit code is 1 if something grows or drifts.
"""

from __future__ import annotations

import argparse
import copy
import gc
import random
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tenfold
from tenfold.manifolds import is_low_rank, rank_tuple
from tenfold.optim import TDLRT, IllConditionedWarning, RankPolicy, RiemannianAdam, RiemannianSGD, TangentMuon

EVERY = 3
SIDE, CHANNELS, CLASSES = 6, 8, 10


@dataclass(frozen=True, kw_only=True)
class Wandering(RankPolicy):
    """Draws every rank between its limits, which reach up to twice the present one."""

    def wanted(self, pending: Any, limits: Sequence[list[tuple[int, int]]], step: int) -> list[Any]:
        """The ranks of a step are a function of its number."""
        draw = random.Random(step)
        return [tuple(draw.randint(low, high) for low, high in bounds) for bounds in limits]


@dataclass(frozen=True)
class Sample:
    """What is measured now and then."""

    steps: int
    seconds: float
    rss_mib: float
    private_mib: float
    tensors: int
    graphs: int
    objects: int
    state: int
    off_manifold: float
    off_tangent: float
    risen: int
    fallen: int
    loss: float


class Runner:
    """One network and its optimizer."""

    def __init__(self, teacher: nn.Module, make: Callable[[nn.Module, RankPolicy], torch.optim.Optimizer]):
        self.teacher, self.model = teacher, copy.deepcopy(teacher)
        tenfold.nn.factorize(self.model, include=["0"], rank=3)
        tenfold.nn.factorize(self.model, include=["3"], rank=3, format="fixed-rank")
        tenfold.nn.factorize(self.model, include=["5"], rank=3, format="tensor-train")
        self.optimizer = make(self.model, Wandering(every=EVERY))
        self.risen, self.fallen, self.loss = 0, 0, 0.0

    def step(self) -> None:
        """One step on new inputs."""
        images = torch.randn(8, 3, SIDE, SIDE)
        with torch.no_grad():
            wanted = self.teacher(images)
        before = self.ranks()
        loss = nn.functional.mse_loss(self.model(images), wanted)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        pairs = list(zip(before, self.ranks(), strict=True))
        self.risen += sum(new > old for old, new in pairs)
        self.fallen += sum(new < old for old, new in pairs)
        self.loss = loss.item()

    def ranks(self) -> list[int]:
        """Every rank of the low-rank parameters."""
        return [rank for p in self.low_rank() for rank in rank_tuple(p.manifold.rank)]

    def low_rank(self) -> list[Any]:
        """The low-rank parameters."""
        return [p for p in self.model.parameters() if is_low_rank(p)]

    def off_manifold(self) -> float:
        """Largest entry of what projection changes in a point, relative to its largest entry."""
        return _worst(_off(p.detach(), p.manifold.projx(p.detach())) for p in self.low_rank())

    def off_tangent(self) -> float:
        """The same for the momentum and the tangent space.

        That of TDLRT is a core, which is always in it; that of damped steps is projected in the next one.
        """
        found = [0.0]
        damped = self.optimizer.param_groups[0]["damping"] is not None
        for p in () if damped else self.low_rank():
            for name in ("momentum_buffer", "exp_avg"):
                u = self.optimizer.state[p].get(name)
                if u is not None and u.shape == p.shape:
                    found.append(_off(u, p.manifold.proju(p.detach(), u)))
        return _worst(found)


def _off(one: torch.Tensor, two: torch.Tensor) -> float:
    return ((one - two).abs().max() / one.abs().max().clamp(min=1e-12)).item()


def _worst(values: Iterable[float]) -> float:
    """The largest; NaN if there is one."""
    return torch.tensor(list(values)).max().item()


def runners() -> list[Runner]:
    """One for every optimizer, all with the same start."""
    torch.manual_seed(0)
    teacher = nn.Sequential(
        nn.Conv2d(3, CHANNELS, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(CHANNELS * SIDE**2, 24),
        nn.ReLU(),
        nn.Linear(24, CLASSES),
    )
    makers: list[Callable[[nn.Module, RankPolicy], torch.optim.Optimizer]] = [
        lambda m, ranks: RiemannianSGD(m.parameters(), 0.02, momentum=0.9, rank_adaptation=ranks),
        lambda m, ranks: RiemannianSGD(m.parameters(), 0.02, 0.9, damping=0.1, rank_adaptation=ranks),
        lambda m, ranks: RiemannianAdam(m.parameters(), 1e-3, rank_adaptation=ranks),
        lambda m, ranks: TangentMuon(m.parameters(), 1e-3, rank_adaptation=ranks),
        lambda m, ranks: TDLRT(m.parameters(), 0.02, rank_adaptation=ranks, integrator="fused", model=m),
    ]
    return [Runner(teacher, make) for make in makers]


def soak(steps: int, samples: int) -> Iterator[Sample]:
    """Take `steps` optimizer steps in all and measure `samples` times, at equal distances."""
    turns = runners()
    started, done = time.perf_counter(), 0
    for number in range(1, samples + 1):
        while done < steps * number // samples:
            turns[done % len(turns)].step()
            done += 1
        yield measure(turns, done, time.perf_counter() - started)


def measure(turns: Sequence[Runner], done: int, seconds: float) -> Sample:
    """Count what is alive in the process and look at every point."""
    gc.collect()
    objects = gc.get_objects()
    tensors = [thing for thing in objects if issubclass(type(thing), torch.Tensor)]
    return Sample(
        steps=done,
        seconds=seconds,
        rss_mib=memory("VmRSS"),
        private_mib=memory("RssAnon") + memory("VmSwap"),
        tensors=len(tensors),
        graphs=sum(tensor.grad_fn is not None for tensor in tensors),
        objects=len(objects),
        state=sum(len(turn.optimizer.state) + len(turn.optimizer.param_groups) for turn in turns),
        off_manifold=_worst(turn.off_manifold() for turn in turns),
        off_tangent=_worst(turn.off_tangent() for turn in turns),
        risen=sum(turn.risen for turn in turns),
        fallen=sum(turn.fallen for turn in turns),
        loss=_worst(turn.loss for turn in turns),
    )


def memory(kind: str) -> float:
    """Memory of this process in MiB, as Linux counts it; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    found = re.search(rf"^{kind}:\s+(\d+) kB$", status.read_text(), flags=re.M) if status.exists() else None
    return int(found[1]) / 1024 if found else 0.0


def faults(samples: Sequence[Sample], mib: float = 8.0, off: float = 1e-4) -> list[str]:
    """What grew or drifted after the first quarter, in words; nothing if all is well.

    Parameters
    ----------
    samples : sequence of Sample
        At least four.
    mib : float
        Growth of the private memory that is allowed, in MiB.
    off : float
        Largest relative distance from manifold and tangent space that is allowed.
    """
    settled = samples[len(samples) // 4 :]
    first, last = settled[0], settled[-1]
    found = []
    for name in ("tensors", "graphs", "state"):
        values = [getattr(sample, name) for sample in settled]
        if max(values) > values[0]:
            found.append(f"{name} grew from {values[0]} to {max(values)}")
    if last.objects > first.objects + 100:  # the samples themselves are objects
        found.append(f"objects grew from {first.objects} to {last.objects}")
    if last.private_mib > first.private_mib + mib:
        found.append(f"private memory grew from {first.private_mib:.1f} to {last.private_mib:.1f} MiB")
    for name in ("off_manifold", "off_tangent"):
        worst = _worst(getattr(sample, name) for sample in samples)
        if not worst <= off:
            found.append(f"{name} reached {worst:.1e}")
    for name in ("risen", "fallen"):
        if getattr(last, name) < last.steps // (2 * EVERY):
            found.append(f"ranks have {name} only {getattr(last, name)} times")
    return found


def main() -> int:
    """Soak, print every sample, and say what is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=20)
    options = parser.parse_args()
    warnings.simplefilter("ignore", IllConditionedWarning)  # what becomes of ranks drawn at random
    names = [field.name for field in fields(Sample)]
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names), flush=True)
    samples = []
    for sample in soak(options.steps, options.samples):
        samples.append(sample)
        values = (getattr(sample, name) for name in names)
        cells = (f"{v:.3g}" if isinstance(v, float) and v < 1 else f"{v:,.5g}" for v in values)
        print("| " + " | ".join(cells) + " |", flush=True)
    found = faults(samples)
    print("\n".join(found) or "flat", flush=True)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
