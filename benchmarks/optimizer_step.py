"""What an optimizer step costs beside the forward and backward pass it follows.

    python benchmarks/optimizer_step.py [--model vgg16] [--rank 0.25] [--batch-size 128] [--rounds 5]
        [--only NAME]

One network in CIFAR shapes with its convolutions and hidden linear layers in Tucker form at a fraction of
every mode (first convolution and classifier dense), against the same factors as plain parameters under AdamW
and against the dense network under SGD. Every method runs in the same process, one after the other in
every round; printed are medians with minimum and maximum over the rounds, in milliseconds, channels last,
momentum 0.9.

Set MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=268435456 on
glibc: the default allocator gives and takes whole activations with every call, which doubles times at random.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from torch import nn

import tenfold
from tenfold.experiments.models import build, dense_by_default
from tenfold.nn import LowRankLayer
from tenfold.optim import (
    TDLRT,
    RankAdaptation,
    RiemannianAdam,
    RiemannianSGD,
    TangentMuon,
    TDLRTAdamW,
    TDLRTMuon,
)


class Loose(nn.Module):
    """A low-rank layer whose factors are plain parameters."""

    def __init__(self, layer: LowRankLayer):
        super().__init__()
        self.__dict__["layer"] = layer  # not a submodule: its weight is no parameter any more
        self.bias = layer.bias
        factors = layer.manifold.unpack_tensor(layer.weight.detach())
        self.factors = nn.ParameterList(nn.Parameter(factor.clone()) for factor in factors)
        self.manifold = layer.manifold
        del layer._parameters["weight"], layer._parameters["bias"]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight = self.manifold.pack_point(*self.factors)
        weight.manifold = self.manifold
        self.layer.__dict__.update(weight=weight, bias=self.bias)
        return self.layer(input)


def loosen(model: nn.Module) -> nn.Module:
    """Replace every low-rank layer by its loose counterpart."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LowRankLayer):
            model.set_submodule(name, Loose(module))
    return model


def methods(name: str, rank: float) -> dict[str, tuple[nn.Module, torch.optim.Optimizer]]:
    """Networks and the optimizers that move them."""
    torch.manual_seed(0)
    dense = build(name, in_channels=3, num_classes=10, image_size=32)
    low = copy.deepcopy(dense)
    tenfold.nn.factorize(low, rank=rank, exclude=dense_by_default(low), init="random")
    found: dict[str, tuple[nn.Module, torch.optim.Optimizer]] = {}

    def add(label: str, model: nn.Module, make: type[torch.optim.Optimizer], **options: object) -> None:
        model = copy.deepcopy(model).to(memory_format=torch.channels_last)
        if issubclass(make, TDLRT | TDLRTAdamW | TDLRTMuon):
            options |= {"integrator": "fused", "model": model}
        found[label] = model, make(model.parameters(), lr=1e-4, **options)

    add("dense, SGD", dense, torch.optim.SGD, momentum=0.9)
    add("loose factors, AdamW", loosen(copy.deepcopy(low)), torch.optim.AdamW)
    add("RiemannianSGD", low, RiemannianSGD, momentum=0.9)
    add("RiemannianSGD, damped", low, RiemannianSGD, momentum=0.9, damping=0.1)
    add("RiemannianAdam, damped", low, RiemannianAdam)
    add("TangentMuon, damped", low, TangentMuon)
    for every in (10, 1):
        # A tolerance of zero and the present ranks as limits: ranks are decided, and stay comparable.
        policy = RankAdaptation(0.0, max_rank=rank, every=every)
        label = f"RiemannianSGD, damped, ranks every {every}"
        add(label, low, RiemannianSGD, momentum=0.9, damping=0.1, rank_adaptation=policy)
    for every in (10, 3):
        # In augmented bases all the time, as `tenfold train` does it; forward and backward take longer there.
        policy = RankAdaptation(0.0, max_rank=rank, every=every)
        add(f"TDLRT, bases every {every}", low, TDLRT, momentum=0.9, rank_adaptation=policy, core_steps=every)
    add("TDLRTAdamW, bases every 3", low, TDLRTAdamW, rank_adaptation=policy, core_steps=3)
    add("TDLRTMuon, bases every 3", low, TDLRTMuon, rank_adaptation=policy, core_steps=3)
    return found


def measure(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, steps: int
) -> tuple[float, float]:
    """Mean milliseconds of forward + backward, and of the optimizer step."""
    network = step = 0.0
    for _ in range(steps):
        start = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        middle = time.perf_counter()
        optimizer.step()
        network, step = network + middle - start, step + time.perf_counter() - middle
    return 1e3 * network / steps, 1e3 * step / steps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vgg16")
    parser.add_argument("--rank", type=float, default=0.25)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="methods whose names contain this")
    options = parser.parse_args()
    x = torch.randn(options.batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (options.batch_size,))
    every = methods(options.model, options.rank)
    runs = {label: pair for label, pair in every.items() if options.only in label}
    times: dict[str, list[tuple[float, float]]] = {label: [] for label in runs}
    for label, (model, optimizer) in runs.items():
        measure(model, optimizer, x, y, 1)
        print(f"warmed up: {label}", flush=True)
    for _ in range(options.rounds):
        for label, (model, optimizer) in runs.items():
            steps = 10 if "every 10" in label else 6 if "every 3" in label else 2
            times[label].append(measure(model, optimizer, x, y, steps))
    threads = torch.get_num_threads()
    print(f"\n{options.model}, rank {options.rank}, batch {options.batch_size}, {threads} threads\n")
    print("| method | forward + backward | optimizer step | step / (forward + backward) |\n|---|---|---|---|")
    for label, pairs in times.items():
        network, step = (sorted(column) for column in zip(*pairs, strict=True))
        share = statistics.median(b / a for a, b in pairs)
        print(f"| {label} | {_spread(network)} | {_spread(step)} | {share:.1%} |")


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} ({values[0]:.0f}–{values[-1]:.0f})"


if __name__ == "__main__":
    main()
