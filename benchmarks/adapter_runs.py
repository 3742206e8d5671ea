"""The runs that the comparisons of adapters make: which, the file of them, the table."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from adapter_methods import Row

# The command line ----------------------------------------------------------------------------


def make_parser(
    about: str | None, methods: Sequence[str], *, rank: int, lrs: Sequence[float]
) -> argparse.ArgumentParser:
    """A parser with the options that all comparisons have."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one for each run")
    parser.add_argument(
        "--table", action="store_true", help="only print the table of the runs that are there"
    )
    usual = [method for method in methods if method != "tenfold-damped"]
    parser.add_argument("--methods", nargs="+", choices=methods, default=usual)
    parser.add_argument("--lrs", nargs="+", type=float, default=list(lrs))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--rank", type=int, default=rank, help="rank of LoRA, which fixes the parameters of all"
    )
    return parser


def on_a_device(parser: argparse.ArgumentParser) -> None:
    """The options of comparisons made for a GPU."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--amp", action="store_true", help="forward pass in bfloat16 autocast")


def grid(options: argparse.Namespace) -> list[Row]:
    """What tells the runs apart, in the order in which they are made."""
    return [
        {"method": method, "lr": lr, "seed": seed}
        for seed in options.seeds
        for lr in options.lrs
        for method in options.methods
    ]


# The file of runs ----------------------------------------------------------------------------


def read(path: Path, protocol: Row) -> list[Row]:
    """Rows of the file under a protocol; there may be none yet."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return [row for row in map(json.loads, lines) if row["protocol"] == protocol]


def carry_out(
    path: Path, protocol: Row, keys: Iterable[Row], run: Callable[..., Row], shown: Sequence[str]
) -> list[Row]:
    """Make the runs that the file does not have yet, and return all of the protocol.

    Parameters
    ----------
    path : Path
        The file, to which each run is appended.
    protocol : dict
        What all runs have in common.
    keys : iterable of dict
        The runs.
    run : callable
        Makes one, given its key.
    shown : sequence of str
        What to print of each, beside its key.
    """
    done = read(path, protocol)
    for key in keys:
        if any(all(row[name] == key[name] for name in key) for row in done):
            continue
        row = {**key, "protocol": protocol, **run(**key)}
        done.append(row)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(*(f"{name}={row[name]}" for name in (*key, *shown)), flush=True)
    return done


# The table -----------------------------------------------------------------------------------


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [head, *rows]
    first, *others = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([first, "|---" * len(head) + "|", *others])


def at_best_rate(rows: Iterable[Row], score: str, *, lowest: bool = False) -> list[Row]:
    """The runs at the smallest of the learning rates whose mean score over the seeds is the best.

    The best is the highest, or the lowest. Rates at which fewer seeds were run than at others do not count.
    """
    by_lr: dict[float, list[Row]] = {}
    for row in rows:
        by_lr.setdefault(row["lr"], []).append(row)
    most = max((len(runs) for runs in by_lr.values()), default=0)
    complete = {lr: by_lr[lr] for lr in sorted(by_lr) if len(by_lr[lr]) == most}
    sign = -1 if lowest else 1
    means = {lr: sign * statistics.fmean(run[score] for run in runs) for lr, runs in complete.items()}
    return complete[max(means, key=lambda lr: round(means[lr], 9))] if means else []


def spread(values: Sequence[float], form: str = ".2%") -> str:
    """The standard deviation, if there are several."""
    return format(statistics.stdev(values), form) if len(values) > 1 else ""
