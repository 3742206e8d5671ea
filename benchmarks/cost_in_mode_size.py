"""Cost of one Riemannian step in the mode size, at fixed rank.

    python benchmarks/cost_in_mode_size.py

Time of gradient conversion, retraction and transport (what RiemannianSGD with momentum does in a step) for
n x n x n tensors, n from 64 to 4096, and the exponent of a power law fitted to the upper half of the sizes,
where the arithmetic outweighs the overhead of a call. Medians of `torch.utils.benchmark`, one thread.
"""

from __future__ import annotations

import math

import torch
from torch.utils.benchmark import Timer

from tenfold.manifolds import (
    FixedRankManifold,
    HierarchicalTuckerManifold,
    LowRankManifold,
    TensorTrainManifold,
    TuckerManifold,
)

SIZES = [64, 128, 256, 512, 1024, 2048, 4096]
RANK = 16
FORMATS = {
    "Tucker": lambda n: TuckerManifold((n, n, n), RANK),
    "fixed-rank": lambda n: FixedRankManifold((n, n), RANK),
    "Tensor Train": lambda n: TensorTrainManifold((n, n, n), RANK),
    "hierarchical Tucker": lambda n: HierarchicalTuckerManifold((n, n, n, n), RANK),
}


def step(manifold: LowRankManifold, x: torch.Tensor, g: torch.Tensor, damping: float | None) -> None:
    """Gradient, retraction and transport, with one frame."""
    frame = manifold.frame(x) if damping is None else manifold.damped_frame(x, damping)
    u = manifold.egrad2rgrad(x, g, frame=frame)
    manifold.retr_transp(x, -1e-3 * u, u, frame=frame)


def seconds(manifold: LowRankManifold, damping: float | None) -> float:
    """Median time of a step."""
    generator = torch.Generator().manual_seed(0)
    x = manifold.random(generator=generator)
    g = torch.randn(manifold.size, generator=generator)
    names = {"step": step, "manifold": manifold, "x": x, "g": g, "damping": damping}
    timer = Timer("step(manifold, x, g, damping)", globals=names, num_threads=1)
    return timer.blocked_autorange(min_run_time=0.5).median


def exponent(times: list[float]) -> float:
    """Slope of log time over log size in the upper half of the sizes."""
    half = len(SIZES) // 2
    xs = torch.tensor([math.log(n) for n in SIZES[half:]])
    ys = torch.tensor([math.log(t) for t in times[half:]])
    xs, ys = xs - xs.mean(), ys - ys.mean()
    return ((xs * ys).sum() / xs.square().sum()).item()


def main() -> None:
    print(f"| format, rank {RANK} | step | " + " | ".join(f"n = {n}" for n in SIZES) + " | exponent |")
    print("|---|---|" + "---|" * (len(SIZES) + 1))
    for name, make in FORMATS.items():
        for label, damping in (("exact", None), ("damped", 0.1)):
            times = [seconds(make(n), damping) for n in SIZES]
            cells = " | ".join(f"{1e3 * t:.2f} ms" for t in times)
            print(f"| {name} | {label} | {cells} | {exponent(times):.2f} |", flush=True)


if __name__ == "__main__":
    main()
