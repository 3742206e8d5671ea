"""Train a low-rank network in several processes, through rank changes, and save what any number can load.

torchrun --standalone --nproc-per-node 2 examples/data_parallel.py --out checkpoint
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from tenfold.distributed import DistributedDataParallel, load_checkpoint, save_checkpoint, shutdown
from tenfold.nn import Linear
from tenfold.optim import RankAdaptation, RiemannianSGD


def main() -> None:
    """Fit a random teacher of rank 3; go on from the checkpoint if there is one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()

    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    number, count = dist.get_rank(), dist.get_world_size()

    model = nn.Sequential(Linear(32, 24, rank=8, format="fixed-rank"), nn.LayerNorm(24))
    parallel = DistributedDataParallel(model)
    optimizer = RiemannianSGD(
        model.parameters(), lr=0.5, momentum=0.9, rank_adaptation=RankAdaptation(tol=0.1, every=10)
    )
    start = load_checkpoint(options.out, parallel, optimizer)["step"] if options.out.exists() else 0

    draw = torch.Generator().manual_seed(0)
    teacher = torch.randn(32, 3, generator=draw) @ torch.randn(3, 24, generator=draw)
    for _ in range(start, start + options.steps):
        x = torch.randn(64, 32, generator=draw).chunk(count)[number]  # this process's part of the batch
        loss = (parallel(x) - nn.functional.layer_norm(x @ teacher, (24,))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    if start == 0:
        save_checkpoint(options.out, parallel, optimizer, {"step": options.steps})
    if number == 0:
        print(
            f"{count} processes, steps {start} to {start + options.steps}: loss {loss.item():.4f}, rank",
            model[0].rank,
        )
    shutdown()


if __name__ == "__main__":
    main()
