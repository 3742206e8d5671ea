"""``tenfold check``."""

from __future__ import annotations

import argparse

import geoopt

from tenfold.cli.expression import evaluate
from tenfold.testing import check_manifold
from tenfold.testing.plots import plot_slopes


def check_command(options: argparse.Namespace) -> int:
    """Run the property kit on the manifold that ``options.manifold`` names, and print its table.

    Parameters
    ----------
    options : argparse.Namespace
        As :func:`tenfold.cli.arguments.parse` gives it.

    Returns
    -------
    int
        The exit code: 0 if no check failed, else 1.

    Raises
    ------
    ValueError, OSError
        A mistake of the user, in one line.
    """
    manifold = evaluate(options.manifold, "a manifold")
    if not isinstance(manifold, geoopt.Manifold):
        raise ValueError(f"{options.manifold!r} is {manifold!r}, not a geoopt.Manifold")
    report = check_manifold(
        manifold, checks=options.only, examples=options.examples, seed=options.seed, shape=options.shape
    )
    print(report)
    if options.plot is not None:
        plot_slopes(report, options.plot)
        print(f"{options.plot} is written")
    return 0 if report.ok else 1
