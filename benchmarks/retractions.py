"""What the retractions of a convolution's kernel cost, beside each other.

    python benchmarks/retractions.py [--channels 512] [--rank 128] [--rounds 20]

A Tucker point of shape (channels, channels, 3, 3) whose channel modes are compressed, float32, one tangent
vector; every retraction in turn in every round. Milliseconds of processor time, medians with minimum and
maximum; *defect* is the largest entry of ``U^T U - I`` afterwards. The frame, which
gradient and transport share, is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from tenfold.linalg import Orthonormalization
from tenfold.manifolds import TuckerManifold


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    shape = (options.channels, options.channels, 3, 3)
    manifold = TuckerManifold(shape, (options.rank, options.rank), modes=(0, 1))
    x = manifold.random(generator=torch.Generator().manual_seed(0))
    u = manifold.proju(x, torch.randn(manifold.size, generator=torch.Generator().manual_seed(1)))
    u = 0.01 * u * manifold.norm(x, manifold.radial(x)) / manifold.norm(x, u)
    frames = {"exact": manifold.frame(x), "damped": manifold.damped_frame(x, 0.1)}
    names = [method.value for method in Orthonormalization]
    ways = [(geometry, name) for geometry in frames for name in names] + [("exact", "hosvd")]
    times: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    defects = {}
    for _ in range(options.rounds + 1):
        for geometry, name in ways:
            chosen = manifold.with_retraction(name)
            start = time.thread_time()
            y = chosen.retr(x, u, frame=frames[geometry])
            times[geometry, name].append(1e3 * (time.thread_time() - start))
            defects[geometry, name] = _defect(manifold, y)
    print(f"shape {shape}, rank {options.rank}, {torch.get_num_threads()} threads\n")
    print("| geometry | retraction | milliseconds | defect |\n|---|---|---|---|")
    for way, values in times.items():
        kept = sorted(values[1:])  # the first round warms up
        spread = f"{statistics.median(kept):.1f} ({kept[0]:.1f}–{kept[-1]:.1f})"
        print(f"| {way[0]} | {way[1]} | {spread} | {defects[way]:.0e} |")


def _defect(manifold: TuckerManifold, y: torch.Tensor) -> float:
    bases = [factor for factor in manifold.unpack_tensor(y) if factor.ndim == 2]
    return max((u.mT @ u - torch.eye(u.shape[-1])).abs().max().item() for u in bases)


if __name__ == "__main__":
    main()
