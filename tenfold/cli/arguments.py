"""The options of the command line. Options that are not given are absent, not filled with defaults."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tenfold import __version__
from tenfold.cli.evidence_arguments import add_report, add_sweep
from tenfold.experiments.combinations import METHODS, OPTIMIZERS
from tenfold.experiments.config_checks import DATA_SETS, MODELS, ON_NAN, SCHEDULES

FORMATS = ("tucker", "fixed-rank", "tensor-train")  # tenfold.nn.Format, without waiting for torch


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line.

    Returns
    -------
    argparse.Namespace
        With ``command`` (``"train"``, ``"compare"``, …) and the options of that command; options
        of a run (:class:`~tenfold.experiments.config.TrainConfig`) only where they were given.

    Raises
    ------
    SystemExit
        With 0 after ``--help`` and ``--version``, with 2 and one line on stderr after a mistake.
    """
    parser = _Parser(
        prog="tenfold", description="Train neural networks whose weights live on low-rank manifolds."
    )
    parser.add_argument("--version", action="version", version=f"tenfold {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_train(commands)
    _add_compare(commands)
    _add_check(commands)
    _add_inspect(commands)
    _add_compress(commands)
    add_sweep(commands)
    add_report(commands)
    return parser.parse_args(arguments)


def _add_train(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = commands.add_parser(
        "train",
        help="train one network",
        description="Train one network and write config.json, metrics.jsonl, checkpoint.pt, ranks.png and "
        "report.md to a folder. Without options: LeNet5 on scikit-learn's digits, on Tucker manifolds.",
        argument_default=argparse.SUPPRESS,
    )
    what = parser.add_argument_group("what to train")
    what.add_argument("--data", choices=DATA_SETS, help="data set (default: digits, which needs no files)")
    what.add_argument("--data-dir", metavar="DIR", help="folder of the data sets (default: $TENFOLD_DATA)")
    what.add_argument("--model", choices=MODELS, help="network (default: lenet5)")
    what.add_argument("--method", choices=METHODS, help="how weights are stored (default: tucker)")
    what.add_argument("--optimizer", choices=OPTIMIZERS, help="how weights are moved (default: sgd)")

    low_rank = parser.add_argument_group("low rank")
    low_rank.add_argument(
        "--tau",
        type=float,
        help="relative truncation tolerance in [0, 1), larger for smaller ranks "
        "(default: digits 0.15, mnist 0.2, others 0.06)",
    )
    low_rank.add_argument(
        "--rank",
        type=_rank,
        help="rank at the start: a fraction in (0, 1] of each mode, or a number (default: 0.5)",
    )
    low_rank.add_argument(
        "--ranks",
        metavar="NAME=RxR,…",
        help="ranks at the start of each layer instead, as in conv2=5x3,fc1=4x4,fc2=3x3",
    )
    low_rank.add_argument(
        "--compression",
        type=float,
        metavar="C",
        help="in [0, 1), instead of --rank, and to prune: 1 - stored / dense over the layers concerned",
    )
    low_rank.add_argument(
        "--start-compression",
        type=float,
        metavar="C",
        help="start at this smaller compression and reach --compression after half of the steps",
    )
    low_rank.add_argument(
        "--per-layer",
        action="store_true",
        help="start every layer at that compression by itself, not all at one fraction of their full rank",
    )
    low_rank.add_argument(
        "--decay",
        type=float,
        metavar="D",
        help="start with singular values that fall by this factor, at least 1, from one to the next",
    )
    low_rank.add_argument(
        "--adapt-every",
        type=int,
        metavar="STEPS",
        help="steps between rank decisions, 0 for never (default: 10, for TDLRT 3)",
    )
    low_rank.add_argument(
        "--adapt-start",
        type=int,
        metavar="STEPS",
        help="steps at the start that keep the ranks (default: none)",
    )
    low_rank.add_argument(
        "--min-rank",
        type=int,
        metavar="R",
        help="ranks never fall below it (default: 2 for a given compression, 1 for a tolerance)",
    )
    low_rank.add_argument(
        "--oversampling",
        type=int,
        metavar="N",
        help="directions that every rank keeps beyond the others in the first half of the steps, so that "
        "new ones can grow (default: none)",
    )
    low_rank.add_argument(
        "--damping",
        type=float,
        help="of the steps between rank decisions, 0 for the exact geometry (default: 0.05)",
    )
    low_rank.add_argument(
        "--factorize-all",
        action="store_true",
        help="also factorise the first convolution and the last linear layer",
    )

    how = parser.add_argument_group("how to train (defaults depend on the data set)")
    how.add_argument("--epochs", type=int, metavar="N")
    how.add_argument("--batch-size", type=int, metavar="N")
    how.add_argument("--lr", type=float, help="learning rate at the top of the schedule")
    how.add_argument("--momentum", type=float)
    how.add_argument("--weight-decay", type=float, metavar="W")
    how.add_argument("--schedule", choices=SCHEDULES, help="of the learning rate (default: one-cycle)")
    how.add_argument("--seed", type=int, metavar="N", help="decides everything random (default: 0)")
    how.add_argument("--device", help="auto, cpu, cuda, cuda:1, … (default: auto)")
    how.add_argument("--amp", action="store_true", help="forward pass in bfloat16 autocast")
    how.add_argument(
        "--on-nan",
        choices=ON_NAN,
        help="what to do with a step that holds NaN or infinity: stop, leave it out, or go back to the last "
        "checkpoint and draw other batches (default: raise)",
    )

    where = parser.add_argument_group("where to, and what else")
    where.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=None,
        help="folder of the run (default: runs/DATA-MODEL-METHOD, with the optimizer if it is not sgd)",
    )
    where.add_argument(
        "--resume",
        action="store_true",
        default=False,
        help="go on after the last checkpoint in DIR, with its options",
    )
    where.add_argument(
        "--checkpoint-every",
        type=int,
        metavar="STEPS",
        help="also save so often within an epoch (default: after every epoch)",
    )
    where.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        default=600.0,
        help="under torchrun: how long processes wait for one that has died (default: 600)",
    )
    where.add_argument(
        "--beside-dense",
        action="store_true",
        default=False,
        help="then train the dense network the same way into DIR/dense, and compare",
    )


def _add_compare(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = commands.add_parser(
        "compare",
        help="put finished runs side by side",
        description="Print a table of finished runs on one data set, and write it to comparison.md beside "
        "comparison.png, the plot of accuracy over compression.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folder of a run")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write to (default: the first DIR)")


def _add_check(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = commands.add_parser(
        "check",
        help="run the property kit on a manifold",
        description="Check a manifold against its dense tensors and print a table. Exit code 0 if no check "
        "failed, else 1. Any geoopt manifold will do; what does not apply to it is said.",
    )
    parser.add_argument(
        "manifold",
        metavar="MODULE:NAME",
        help="the manifold, for instance 'tenfold.manifolds:TuckerManifold((6, 5, 4), (3, 2, 2))'",
    )
    parser.add_argument("--examples", type=int, default=4, metavar="N", help="batches of points per check")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the first of them")
    parser.add_argument(
        "--only", type=lambda text: text.split(","), metavar="IDS", help="ids of checks, as in J1,R3,R4"
    )
    parser.add_argument(
        "--shape", type=_shape, metavar="SIZES", help="shape of a point, as in 5,3, if the manifold has none"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="image to draw the measured slopes to")


def _add_inspect(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = commands.add_parser(
        "inspect",
        help="show the spectra of the weights in a file",
        description="Print, for each unfolding of each weight in a file, its condition number, how many "
        "singular values hold 50, 90 and 99 percent of the squared norm, and the rank at a tolerance.",
    )
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="state dictionary of torch.save or safetensors, or a checkpoint that holds one; "
        "no code in it is run",
    )
    _add_format(parser)
    parser.add_argument(
        "--tol", type=_tolerance, default=0.1, help="relative error of a weight (default: 0.1)"
    )


def _add_compress(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = commands.add_parser(
        "compress",
        help="decompose the weights in a file or of a model",
        description="Decompose the weights of linear layers and convolutions in a file or of a model, and "
        "write a state dictionary that loads into the model after tenfold.nn.factorize(model, format=...).",
    )
    parser.add_argument(
        "model",
        metavar="FILE|MODULE:NAME",
        help="state dictionary of torch.save or safetensors, or a checkpoint that holds one (no code in it "
        "is run); or what makes a model, for instance 'my_models:Net(10)'",
    )
    _add_format(parser)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--rank", type=_rank, help="a fraction in (0, 1] of each mode, or a number")
    how.add_argument("--tol", type=_tolerance, help="relative error of each weight, in [0, 1)")
    how.add_argument("--compression", type=float, metavar="SHARE", help="share of the numbers to save")
    parser.add_argument("--include", action="append", metavar="NAME", help="layers, or patterns; repeatable")
    parser.add_argument(
        "--exclude", action="append", metavar="NAME", help="layers, or patterns, that stay dense"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="file to write (default: FILE with the format in its name)"
    )


def _add_format(parser: _Parser) -> None:
    parser.add_argument(
        "--format", choices=FORMATS, default="tucker", help="format of the weights (default: tucker)"
    )


def _tolerance(text: str) -> float:
    try:
        tol = float(text)
    except ValueError:
        tol = -1.0
    if not 0 <= tol < 1:
        raise argparse.ArgumentTypeError(f"must be a number in [0, 1), not {text!r}")
    return tol


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be whole numbers as in 5,3, not {text!r}") from None


def _rank(text: str) -> float | int:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a fraction in (0, 1] or a whole number, not {text!r}"
        ) from None
