"""``tenfold sweep``."""

from __future__ import annotations

import argparse
import shlex

from tenfold.cli.errors import INTERRUPTED, complain
from tenfold.experiments.grid import read_sweep
from tenfold.experiments.part import part_of
from tenfold.experiments.processes import joined
from tenfold.experiments.sweep import RESULTS, SweepRunner

_INCOMPLETE = 1
_PATIENCE = 30 * 24 * 3600.0  # seconds; processes with little to do wait for the others


def sweep_command(options: argparse.Namespace) -> int:
    """Carry out the sweep in ``options.file``.

    Parameters
    ----------
    options : argparse.Namespace
        As :func:`tenfold.cli.arguments.parse` gives it.

    Returns
    -------
    int
        The exit code: 0 if everything is done, 1 if some runs failed, 130 after Ctrl-C.

    Raises
    ------
    ValueError, OSError
        A mistake of the user, in one line.
    """
    sweep = part_of(read_sweep(options.file, options.data_dir), options.only)
    with joined("cpu", _PATIENCE) as processes:
        tell = _tell if processes.first else _silence
        return _carry_out(options, SweepRunner(sweep, options.out, options.jobs, tell, processes))


def _carry_out(options: argparse.Namespace, runner: SweepRunner) -> int:
    sweep = runner.sweep
    trials, runs = runner.left()
    runner.tell(
        f"{sweep.name}: {trials} of {len(sweep.trials)} trials and {runs} of {len(sweep.entries)} runs to do"
    )
    if options.dry_run:
        return 0
    try:
        complete = runner.run()
    except KeyboardInterrupt:
        if runner.processes.first:
            complain(f"stopped. Go on with: {_command_line(options)}")
        return INTERRUPTED
    if (options.out / RESULTS).is_file():
        runner.tell(f"{options.out / RESULTS} is written")
    return 0 if complete else _INCOMPLETE


def _command_line(options: argparse.Namespace) -> str:
    command = ["tenfold", "sweep", str(options.file), "--out", str(options.out)]
    if options.jobs != 1:
        command += ["--jobs", str(options.jobs)]
    if options.data_dir is not None:
        command += ["--data-dir", options.data_dir]
    if options.only:
        command += ["--only", *options.only]
    return shlex.join(command)


def _tell(line: str) -> None:
    print(line, flush=True)


def _silence(line: str) -> None:
    """What processes but the first say."""
