"""Complete a tensor of which a few entries are seen, by Riemannian conjugate gradients with growing ranks.

    python examples/tensor_completion.py --data indian-pines --fraction 0.1
    python examples/tensor_completion.py --data indian-pines --fraction 0.1 --peer tucker --rank 20 20 6

One process runs one method, so that its peak memory is its own. The dense tensor is only read: tenfold
evaluates the seen entries from the factors. The ranks grow one mode after the other, as long as the error on
a part of the seen entries, set aside for that purpose, falls (Steinlechner 2016); then all seen entries are
fitted at the ranks found. Nothing is tuned on the held-out entries.

The real data come with tensorly (``pip install tensorly``).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import completion_data
import completion_peers
import geoopt
import torch

from tenfold.experiments.memory import peak_memory
from tenfold.manifolds import HierarchicalTuckerManifold, TensorTrainManifold, TreeManifold, TuckerManifold
from tenfold.manifolds.entries import Entries
from tenfold.optim import Outcome, RiemannianCG, RiemannianLBFGS

OPTIMIZERS = {"cg": RiemannianCG, "lbfgs": RiemannianLBFGS}
FORMATS = {"tucker": TuckerManifold, "tt": TensorTrainManifold, "ht": HierarchicalTuckerManifold}


@dataclass
class Samples:
    """Entries of the tensor: positions ``(m, d)``, values ``(m,)``, and how to read them from factors."""

    entries: Entries
    values: torch.Tensor

    @classmethod
    def at(cls, manifold: TreeManifold, problem: completion_data.Problem, flat: torch.Tensor) -> Samples:
        index = torch.stack(torch.unravel_index(flat, problem.shape), dim=1)
        return cls(Entries(manifold, index), problem.tensor.reshape(-1)[flat])

    def error(self, x: geoopt.ManifoldParameter) -> float:
        """Relative error."""
        return ((self.entries(x.manifold, x.detach()) - self.values).norm() / self.values.norm()).item()


class Completion:
    """A low-rank tensor that is fitted to samples."""

    def __init__(self, manifold: TreeManifold, optimizer: str, seed: int):
        self.method = OPTIMIZERS[optimizer]
        self.noise = torch.Generator().manual_seed(seed)
        start = manifold.random(dtype=torch.float64, generator=self.noise)
        # Random entries as large as those of the data, whose root mean square is 1.
        start += (math.sqrt(manifold.dense_size) / manifold.radial(start).norm() - 1) * manifold.radial(start)
        self.x = geoopt.ManifoldParameter(start, manifold=manifold)

    def fit(self, samples: Samples, iterations: int, tolerance: float) -> int:
        """Minimise half the squared relative error, until an iteration gains too little; count them."""
        optimizer = self.method([self.x], max_iter=5, tolerance_grad=1e-10)
        scale = 0.5 / samples.values.square().sum()

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = scale * (samples.entries(self.x.manifold, self.x) - samples.values).square().sum()
            loss.backward()
            return loss

        done = 0
        while done < iterations:
            before = float(optimizer.step(closure))
            report = optimizer.report
            done += len(report.accepted)
            gain = (before - report.loss) / max(before, 1e-300)
            if report.outcome is not Outcome.ITERATIONS or gain < tolerance * len(report.accepted):
                break
        return done

    def grow(self, rank: tuple[int, ...]) -> None:
        self.method([self.x]).grow_ranks(rank, generator=self.noise)

    def snapshot(self) -> tuple[TreeManifold, torch.Tensor]:
        return self.x.manifold, self.x.detach().clone()

    def restore(self, saved: tuple[TreeManifold, torch.Tensor]) -> None:
        self.x = geoopt.ManifoldParameter(saved[1], manifold=saved[0])


def complete(
    problem: completion_data.Problem, args: argparse.Namespace
) -> tuple[Completion, dict[str, object]]:
    """Grow the ranks on a part of the samples, then fit all of them."""
    kind = FORMATS[args.format](problem.shape, 1)
    order = torch.randperm(len(problem.seen), generator=torch.Generator().manual_seed(args.seed))
    aside = len(order) // 20
    fitted = Samples.at(kind, problem, problem.seen[order[aside:]])
    judged = Samples.at(kind, problem, problem.seen[order[:aside]])
    model = Completion(
        kind.with_rank(kind.tree.clip(kind.shape, [2] * len(kind.tree.ranks))), args.optimizer, args.seed
    )
    iterations = model.fit(fitted, args.iterations, args.tolerance)
    best, grew = judged.error(model.x), True
    while grew:
        grew = False
        for k in range(len(kind.tree.ranks)):
            manifold = model.x.manifold
            rank = larger(manifold, k, args.growth, args.max_rank)
            if rank == manifold.rank:
                continue
            saved = model.snapshot()
            model.grow(rank)
            iterations += model.fit(fitted, args.iterations, args.tolerance)
            error = judged.error(model.x)
            better = error < best * (1 - args.gain) and best > 1e-6
            print(
                f"rank {rank}: error {error:.5f} where {best:.5f} is best{'' if better else ', taken back'}"
            )
            if better:
                best, grew = error, True
            else:
                model.restore(saved)
    iterations += model.fit(
        Samples.at(kind, problem, problem.seen), args.final_iterations, args.final_tolerance
    )
    return model, {"rank": model.x.manifold.rank, "iterations": iterations, "parameters": model.x.numel()}


def larger(manifold: TreeManifold, k: int, growth: float, highest: int) -> tuple[int, ...]:
    """The ranks with number ``k`` raised, as far as that is feasible."""
    rank = list(manifold.rank)
    rank[k] = max(rank[k], min(highest, rank[k] + max(1, round(growth * rank[k]))))
    feasible: tuple[int, ...] = manifold.tree.clip(manifold.shape, rank)
    return feasible


def held_out_error(problem: completion_data.Problem, estimate: torch.Tensor) -> float:
    """Relative error on the held-out entries of a dense estimate."""
    truth = problem.tensor.reshape(-1)[problem.held_out]
    return ((estimate.reshape(-1)[problem.held_out] - truth).norm() / truth.norm()).item()


def forget_peak() -> int:
    """Start the measurement of peak memory anew where the system can (Linux); bytes in use now."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")
    return peak_memory(torch.device("cpu")) or 0


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    problem = completion_data.load(args.data, args.fraction, args.seed)
    mean = problem.tensor.reshape(-1)[problem.seen].mean()
    resident, begin, work = forget_peak(), time.perf_counter(), time.process_time()
    if args.peer:
        estimate, numbers = completion_peers.run(
            args.peer, problem, args.rank, args.final_iterations, args.final_tolerance, args.seed
        )
    else:
        model, numbers = complete(problem, args)
    seconds, work = time.perf_counter() - begin, time.process_time() - work
    peak = peak_memory(torch.device("cpu")) or 0
    if not args.peer:
        estimate = model.x.manifold.to_dense(model.x.detach())
    result = {
        "method": args.peer or f"tenfold {args.format} {args.optimizer}",
        "data": args.data,
        "shape": problem.shape,
        "fraction": args.fraction,
        "seed": args.seed,
        **numbers,
        "seconds": round(seconds, 1),
        "processor_seconds": round(work, 1),
        "peak_MB": round((peak - resident) / 1e6),
        "error": held_out_error(problem, estimate),
        "error_of_the_mean": held_out_error(problem, mean.expand(problem.shape)),
    }
    print(json.dumps(result, indent=1))
    if args.out is not None:
        with args.out.open("a") as file:
            file.write(json.dumps(result) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", choices=completion_data.NAMES, default="synthetic")
    parser.add_argument("--fraction", type=float, default=0.1, help="of the measured entries that is seen")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append the result to this file, one line of JSON")
    parser.add_argument(
        "--peer", choices=completion_peers.NAMES, help="run a public method instead of tenfold"
    )
    parser.add_argument("--rank", type=int, nargs="+", default=[10], help="of the peer")
    parser.add_argument("--format", choices=list(FORMATS), default="tucker")
    parser.add_argument("--optimizer", choices=list(OPTIMIZERS), default="cg")
    parser.add_argument("--max-rank", type=int, default=60)
    parser.add_argument("--growth", type=float, default=0.3, help="by which part a rank grows")
    parser.add_argument("--gain", type=float, default=2e-3, help="relative gain that justifies a larger rank")
    parser.add_argument("--iterations", type=int, default=20, help="at most, after each change of rank")
    parser.add_argument(
        "--tolerance", type=float, default=5e-3, help="relative gain of an iteration to go on"
    )
    parser.add_argument("--final-iterations", type=int, default=100, help="at most, at the end; of the peer")
    parser.add_argument(
        "--final-tolerance", type=float, default=1e-5, help="to go on at the end; of the peer"
    )
    args = parser.parse_args()
    if not 0 < args.fraction < 1:
        parser.error(f"--fraction must lie between 0 and 1, got {args.fraction}")
    return args


if __name__ == "__main__":
    main()
