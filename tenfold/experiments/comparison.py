"""Several runs on one data set side by side, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tenfold.experiments.plots import plot_comparison
from tenfold.experiments.report import write_report
from tenfold.experiments.runs import Run, read_run

COMPARISON = "comparison.md"
COMPARISON_PLOT = "comparison.png"


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs that can be compared.

    Raises
    ------
    FileNotFoundError
        A folder holds no run.
    ValueError
        No folder is given, one is given twice, a run has no finished epoch, or the data sets differ.
    """
    if not folders:
        raise ValueError("there is nothing to compare: name the folder of at least one run")
    for folder in folders:
        if list(folders).count(folder) > 1:
            raise ValueError(f"the folder {folder} is named twice")
    runs = [read_run(folder) for folder in folders]
    for run in runs[1:]:
        if run.config.data != runs[0].config.data:
            raise ValueError(
                f"runs on different data cannot be compared: {runs[0].folder} is on {runs[0].config.data}, "
                f"{run.folder} on {run.config.data}"
            )
    return runs


def write_comparison(folder: Path, runs: Sequence[Run]) -> None:
    """Write ``comparison.md`` and ``comparison.png`` about `runs` to `folder`, created if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    write_report(folder / COMPARISON, runs)
    plot_comparison(folder / COMPARISON_PLOT, runs)
