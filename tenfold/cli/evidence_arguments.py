"""The options of ``tenfold sweep`` and ``tenfold report``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_sweep(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``tenfold sweep``."""
    parser = commands.add_parser(
        "sweep",
        help="train many networks, resumable at any moment",
        description="Train every network that a YAML file asks for, each at the best of its learning rates, "
        "and write a line of JSON for each to results.jsonl. What has a line is skipped; a sweep that was "
        "stopped or killed goes on after the last finished epoch of every run.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the sweep, in YAML")
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder of the results")
    parser.add_argument("--jobs", type=int, default=1, metavar="K", help="processes at a time (default: 1)")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the data sets (default: $TENFOLD_DATA)")
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="only runs with these values, as model=alexnet seed=0,1; those that have all of them",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what is left to do")


def add_report(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``tenfold report``."""
    parser = commands.add_parser(
        "report",
        help="draw tables and figures of a sweep",
        description="Write report.md and its figures about the lines of results.jsonl in a folder.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the results")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write to (default: DIR)")
