"""``tenfold train``."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import fields, replace
from pathlib import Path

from tenfold.cli.display import print_table
from tenfold.cli.session import train_visibly
from tenfold.cli.twin import train_apart
from tenfold.experiments.comparison import COMPARISON, COMPARISON_PLOT, read_runs, write_comparison
from tenfold.experiments.config import TrainConfig
from tenfold.experiments.processes import launched, leads, restarted
from tenfold.experiments.report import table
from tenfold.experiments.runs import CHECKPOINT, REPORT, read_config

_TWIN = "dense"  # folder of the dense network, inside the folder of the run it stands beside


def train_command(options: argparse.Namespace) -> int:
    """Train as the command line asks.

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
    names = {field.name for field in fields(TrainConfig)}
    given = {name: value for name, value in vars(options).items() if name in names}
    folder = options.out or _default_folder(given)
    resume = options.resume or (restarted() and (folder / CHECKPOINT).is_file())
    config = _config(given, folder, resume)
    if options.beside_dense and config.method == "dense":
        raise ValueError("--beside-dense has no effect on the method 'dense'")
    if options.beside_dense and not resume and (folder / _TWIN / CHECKPOINT).exists():
        raise ValueError(
            f"{folder / _TWIN} already holds a run: resume it with --resume, or choose another --out"
        )
    again = _command_line(folder, options.beside_dense)
    code = train_visibly(config, folder, resume, again, options.timeout)
    if code != 0:
        return code
    if options.beside_dense:
        going_on = resume and (folder / _TWIN / CHECKPOINT).is_file()
        twin = (config.dense_twin(), folder / _TWIN, going_on, again)
        # Processes joined once stay what they are.
        code = train_visibly(*twin, options.timeout) if launched() else train_apart(*twin)
        if code != 0:
            return code
    if not leads():
        return 0
    if options.beside_dense:
        runs = read_runs([folder, folder / _TWIN])
        write_comparison(folder, runs)
        print_table(table(runs))
        print(f"{folder / REPORT}, {folder / COMPARISON} and {folder / COMPARISON_PLOT} are written")
    else:
        print_table(table(read_runs([folder])))
        print(f"{folder / REPORT} is written")
    return 0


def _default_folder(given: dict[str, object]) -> Path:
    config = TrainConfig.recipe(**given)
    optimizer = "" if config.optimizer == "sgd" else f"-{config.optimizer}"
    return Path("runs") / f"{config.data}-{config.model}-{config.method}{optimizer}"


def _config(given: dict[str, object], folder: Path, resume: bool) -> TrainConfig:
    """The run asked for; a resumed run is the one in its folder, with what is given on top."""
    if not resume:
        return TrainConfig.recipe(**given)
    if not (folder / CHECKPOINT).is_file():
        raise FileNotFoundError(f"there is nothing to resume: {folder / CHECKPOINT} does not exist")
    return replace(read_config(folder), **given)  # type: ignore[arg-type]


def _command_line(folder: Path, beside_dense: bool) -> str:
    command = ["tenfold", "train", "--resume", "--out", str(folder)]
    return shlex.join(command + ["--beside-dense"] * beside_dense)
