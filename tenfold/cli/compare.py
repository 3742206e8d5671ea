"""``tenfold compare``."""

from __future__ import annotations

import argparse

from tenfold.cli.display import print_table
from tenfold.experiments.comparison import COMPARISON, COMPARISON_PLOT, read_runs, write_comparison
from tenfold.experiments.report import table
from tenfold.experiments.runs import shown


def compare_command(options: argparse.Namespace) -> int:
    """Print and write the comparison of the runs in ``options.folders``.

    Parameters
    ----------
    options : argparse.Namespace
        As :func:`tenfold.cli.arguments.parse` gives it.

    Returns
    -------
    int
        The exit code.

    Raises
    ------
    ValueError, OSError
        A mistake of the user, in one line.
    """
    runs = read_runs(options.folders)
    folder = options.out or options.folders[0]
    write_comparison(folder, runs)
    print_table(table(runs))
    print(f"{shown(folder / COMPARISON)} and {shown(folder / COMPARISON_PLOT)} are written")
    return 0
