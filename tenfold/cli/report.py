"""``tenfold report``."""

from __future__ import annotations

import argparse

from tenfold.experiments.evidence import read_evidence, write_evidence


def report_command(options: argparse.Namespace) -> int:
    """Write tables and figures about the results in ``options.folder``.

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
    for path in write_evidence(options.out or options.folder, read_evidence(options.folder)):
        print(f"{path} is written")
    return 0
