"""Time and memory of training and inference, dense and in Tucker form.

    python benchmarks/training_speed.py [--models vgg16 resnet18] [--compression 0.935] [--rounds 3]

CIFAR shapes, optimizer included, at a given compression of the convolutions. The dense network moves by SGD
with momentum, its counterpart on manifolds by damped RiemannianSGD with ranks decided in every tenth step,
and the same factors as plain parameters by AdamW. Every side runs in its better memory format: both
are measured. First convolution and classifier stay dense. A round measures every side after the other, in a
process of its own, so that its peak of resident memory is its own; "above" is without what the process had
before there was a model. Printed are medians over the rounds, and ratios to the dense network in the same
round.

"fused" is after tenfold.nn.fuse_normalization, "poolings recomputed" after recompute_activations with
inner=False, "all recomputed" without. "dense, recomputed" repeats each convolution with what follows up to
the next one, or each residual block, by torch.utils.checkpoint.

Set MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=268435456 on glibc:
the default allocator gives and takes whole activations with every call, which doubles times at random.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import tenfold
from tenfold.experiments.compression import Compression
from tenfold.experiments.models import build, dense_by_default
from tenfold.experiments.resnet import ResidualBlock
from tenfold.optim import RankAdaptation, RiemannianSGD

sys.path.insert(0, str(Path(__file__).parent))
from optimizer_step import loosen

SIDES = (
    "dense",
    "dense, recomputed",
    "tucker",
    "tucker, fused",
    "tucker, fused, poolings recomputed",
    "tucker, fused, all recomputed",
    "loose",
)
FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
ROUND = 10  # steps; one of them decides on ranks


def network(name: str, compression: float | None) -> tuple[nn.Module, float | None]:
    """The dense network, or one whose convolutions are compressed so far by a fraction of each mode."""
    if compression is None:
        return build(name, in_channels=3, num_classes=10, image_size=32), None
    misses = {}
    for percent in range(5, 60):
        with torch.device("meta"):
            misses[percent / 100] = abs(
                Compression.of(_factorized(name, percent / 100)).convolutions - compression
            )
    fraction = min(misses, key=lambda item: misses[item])
    return _factorized(name, fraction), fraction


def _factorized(name: str, fraction: float) -> nn.Module:
    model = build(name, in_channels=3, num_classes=10, image_size=32)
    tenfold.nn.factorize(model, rank=fraction, exclude=dense_by_default(model), init="random")
    return model


class Repeated(nn.Sequential):
    """Modules of which only the input is kept for the backward pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x)
        return checkpoint(super().forward, x, use_reentrant=False, preserve_rng_state=False)


def in_blocks(model: nn.Sequential) -> nn.Sequential:
    """A dense network that repeats each block: a convolution with what follows, or a residual block.

    Running statistics take in each batch twice, which changes neither time nor memory.
    """
    blocks: list[list[nn.Module]] = [[]]
    for module in model:
        if isinstance(module, nn.Conv2d | ResidualBlock | nn.AdaptiveAvgPool2d):
            blocks.append([])
        blocks[-1].append(module)
    *repeated, last = blocks
    return nn.Sequential(*(Repeated(*block) for block in repeated), *last)


def peak_memory() -> float:
    """Largest resident memory of the process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def side(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a training step and of an inference, and the peak of resident memory in MiB."""
    before = peak_memory()
    torch.manual_seed(0)
    model, fraction = network(options.model, None if "dense" in options.side else options.compression)
    convolutions = Compression.of(model).convolutions
    if options.side == "loose":
        model = loosen(model)
    if "fused" in options.side:
        tenfold.nn.fuse_normalization(model)
    if "tucker" in options.side and "recomputed" in options.side:
        tenfold.nn.recompute_activations(model, inner="all" in options.side)
    if options.side == "dense, recomputed":
        model = in_blocks(model)
    memory_format = FORMATS[options.format]
    model = model.to(memory_format=memory_format)
    x = torch.randn(options.batch_size, 3, 32, 32).contiguous(memory_format=memory_format)
    y = torch.randint(0, 10, (options.batch_size,))
    optimizer: torch.optim.Optimizer
    if "dense" in options.side:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    elif options.side == "loose":
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    else:
        # A tolerance of zero and the present ranks as limits: ranks are decided, and stay comparable.
        policy = RankAdaptation(0.0, max_rank=fraction, every=ROUND)
        optimizer = RiemannianSGD(
            model.parameters(), lr=1e-3, momentum=0.9, damping=0.1, rank_adaptation=policy
        )

    def train(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        return (time.perf_counter() - start) / steps

    train(1)
    seconds = train(ROUND)
    peak = peak_memory()
    model.eval()
    with torch.no_grad():
        model(x)
        start = time.perf_counter()
        for _ in range(ROUND):
            model(x)
        inference = (time.perf_counter() - start) / ROUND
    return {
        "train": seconds,
        "inference": inference,
        "memory": peak,
        "above": peak - before,
        "convolutions": convolutions,
    }


def measured(options: argparse.Namespace, model: str, side: str) -> dict[str, float]:
    """One side in a process of its own, in its better memory format."""
    found = []
    for memory_format in FORMATS:
        command = [sys.executable, __file__, "--side", side, "--format", memory_format, "--model", model]
        command += ["--compression", str(options.compression), "--batch-size", str(options.batch_size)]
        found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return min(found, key=lambda entry: entry["train"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["vgg16", "resnet18"])
    parser.add_argument("--compression", type=float, default=0.935, help="of the convolutions")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="dense is always measured")
    for hidden in ("--side", "--format", "--model"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side is not None:
        print(json.dumps(side(options)))
        return
    print(f"batch {options.batch_size}, {torch.get_num_threads()} threads, {options.rounds} rounds\n")
    print(
        "| network | side | convolutions | training step | × | inference | × | peak memory | × | above | × |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for model in options.models:
        sides = [side for side in SIDES if side == "dense" or side in options.sides]
        rounds = [{side: measured(options, model, side) for side in sides} for _ in range(options.rounds)]
        for name in sides:
            cells = [model, name, f"{rounds[0][name]['convolutions']:.1%}"]
            columns = (
                ("train", "ms", 1e3),
                ("inference", "ms", 1e3),
                ("memory", "MiB", 1),
                ("above", "MiB", 1),
            )
            for key, unit, scale in columns:
                ratios = [entry["dense"][key] / entry[name][key] for entry in rounds]
                value = statistics.median(entry[name][key] for entry in rounds)
                cells += [f"{scale * value:.0f} {unit}", f"{statistics.median(ratios):.2f}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
