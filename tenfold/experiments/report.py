"""Runs as a table, for the terminal and for Markdown files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tenfold.atomic import write_text
from tenfold.experiments.runs import Run, shown

Table = list[list[str]]


def table(runs: Sequence[Run]) -> Table:
    """Rows of cells, the first row and the first column being headings; one column per run.

    Accuracy is that of the last epoch, time the median over the epochs, memory the largest of the process.
    Skipped steps and rollbacks have a row where there are some.

    Parameters
    ----------
    runs : sequence of Run
        At least one.
    """
    rows = [
        ["", *_headings(runs)],
        ["test accuracy", *(f"{100 * run.last.test_accuracy:.2f} %" for run in runs)],
        ["test loss", *(f"{run.last.test_loss:.4f}" for run in runs)],
        ["epochs", *(f"{run.last.epoch} of {run.config.epochs}" for run in runs)],
        ["parameters", *(f"{run.last.parameters:,}" for run in runs)],
        ["compression, convolutions", *(percent(run.last.compression_convolutions) for run in runs)],
        ["compression, factored layers", *(_factored(run) for run in runs)],
        ["compression, whole network", *(percent(run.last.compression_network) for run in runs)],
        ["time per step", *(f"{1000 * run.seconds_per_step:.2f} ms" for run in runs)],
        ["peak memory", *(_memory(run.peak_memory) for run in runs)],
    ]
    for heading, counts in (
        ("skipped steps", [sum(record.skipped for record in run.records) for run in runs]),
        ("rollbacks", [sum(record.rollbacks for record in run.records) for run in runs]),
    ):
        if any(counts):
            rows.append([heading, *map(str, counts)])
    layers = dict.fromkeys(name for run in runs for name in run.last.ranks)
    for name in layers:
        rows.append([f"rank of {name}", *(_rank(run.last.ranks.get(name)) for run in runs)])
    return rows


def markdown(rows: Table) -> str:
    """The table in Markdown, columns aligned."""
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def write_report(path: Path, runs: Sequence[Run]) -> None:
    """Write the table of `runs`, and what each was asked to do, to the Markdown file `path`."""
    title = f"# {' and '.join(dict.fromkeys(run.config.model for run in runs))} on {runs[0].config.data}\n\n"
    settings = "".join(
        f"- {heading}: {_settings(run)}\n" for heading, run in zip(_headings(runs), runs, strict=True)
    )
    write_text(path, title + markdown(table(runs)) + "\n" + settings)


def percent(fraction: float) -> str:
    """A fraction as a percentage with one decimal."""
    return f"{100 * fraction:.1f} %"


def brief_ranks(ranks: dict[str, list[int]], most: int = 4) -> str:
    """Ranks of the layers in one short line; only their range where there are more than `most` layers."""
    if len(ranks) <= most:
        return " ".join(f"{name} {_rank(rank)}" for name, rank in ranks.items())
    numbers = [max(rank) for rank in ranks.values()]
    return f"{min(numbers)} to {max(numbers)} in {len(ranks)} layers"


def _headings(runs: Sequence[Run]) -> list[str]:
    """The shortest of method, folder's name and folder that tells all runs apart."""
    for names in ([run.config.method for run in runs], [shown(run.folder.name) for run in runs]):
        if len(set(names)) == len(runs):
            return names
    return [shown(run.folder) for run in runs]


def _settings(run: Run) -> str:
    shown = {
        name: value
        for name, value in run.config.to_dict().items()
        if value is not None and name not in ("data_dir", "checkpoint_every")
    }
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def _factored(run: Run) -> str:
    return percent(run.last.compression_factored) if run.config.method != "dense" else "–"


def _rank(rank: list[int] | None) -> str:
    return "×".join(str(r) for r in rank) if rank else "dense"


def _memory(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**20:,.0f} MiB"
