"""The report of a sweep: tables and figures made from its lines alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tenfold.atomic import write_text
from tenfold.experiments.evidence_plots import (
    plot_accuracy,
    plot_memory,
    plot_rank_evolution,
    plot_robustness,
    plot_time,
    plot_variance,
)
from tenfold.experiments.evidence_tables import accuracy_table, robustness_table, size_table, time_table
from tenfold.experiments.report import Table, markdown
from tenfold.experiments.result import Result, read_results
from tenfold.experiments.summary import Setting, settings

REPORT = "report.md"
_HOW_TO_READ = "\nPer cent, mean ± standard deviation over the seeds; in parentheses, compression.\n"


def read_evidence(folder: Path) -> list[Result]:
    """All results in the files ``*.jsonl`` of a folder, of several lines about one run the last.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        A line is not a result, or no run is done.
    """
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        raise FileNotFoundError(f"there are no results in {folder}: it has no file *.jsonl")
    lines = [result for path in paths for result in read_results(path)]
    results = list({(line.kind, repr(sorted(line.config.items()))): line for line in lines}.values())
    if not any(result.kind == "run" for result in results):
        raise ValueError(f"no run of the sweep in {folder} is done yet")
    return results


def write_evidence(folder: Path, results: Sequence[Result]) -> list[Path]:
    """Write ``report.md`` and its figures to `folder`, created if need be; returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    text = "# Results\n\n" + _machines(results)
    tasks: dict[tuple[str, str], list[Setting]] = {}
    for setting in settings(results):
        tasks.setdefault(setting.task, []).append(setting)
    for (data, model), group in tasks.items():
        page = _Page(folder, f"{data}-{model}", written)
        text += f"\n## {model} on {data}\n"
        plain = [setting for setting in group if setting.config["decay"] is None]
        if len(plain) < len(group):
            text += page.robustness(group)
        if plain:
            text += page.accuracy(plain)
    write_text(folder / REPORT, text)
    return [folder / REPORT, *written]


class _Page:
    """The sections about one network on one data set."""

    def __init__(self, folder: Path, stem: str, written: list[Path]) -> None:
        self.folder, self.stem, self.written = folder, stem, written

    def accuracy(self, group: Sequence[Setting]) -> str:
        """What was reached, at which size, in which time."""
        done = [setting for setting in group if setting.results]
        overview = _section("Accuracy, compression, time and memory", accuracy_table(group))
        if not done:
            return overview
        text = ""
        for decides, title in (
            ("compression", "given compressions"),
            ("tau", "given tolerances"),
            ("ranks", "given ranks"),
        ):
            table = size_table(group, decides)
            if len(table) > 1:
                text += _section(f"Test accuracy at {title}", table) + _HOW_TO_READ
        text += self._figure("accuracy", plot_accuracy, done) + overview
        if any(setting.deviation("test_accuracy") is not None for setting in done):
            text += self._figure("variance", plot_variance, done)
        if any(setting.config["method"] == "tucker" for setting in done):
            text += self._figure("ranks", plot_rank_evolution, done)
        text += _section("Time to accuracy", time_table(group)) + self._figure("time", plot_time, done)
        return text + self._figure("memory", plot_memory, done)

    def robustness(self, group: Sequence[Setting]) -> str:
        """What small singular values at the start do."""
        done = [setting for setting in group if setting.results]
        text = _section("Decaying singular values at the start", robustness_table(done))
        diverged = [f"{s.label}, decay {s.decay:g}" for s in group if s.diverged]
        if diverged:
            text += f"\nDiverged: {'; '.join(diverged)}.\n"
        return text + (self._figure("robustness", plot_robustness, done) if done else "")

    def _figure(
        self, name: str, draw: Callable[[Path, Sequence[Setting]], None], group: Sequence[Setting]
    ) -> str:
        path = self.folder / f"{self.stem}-{name}.png"
        draw(path, group)
        self.written.append(path)
        return f"\n![{name}]({path.name})\n"


def _section(title: str, table: Table) -> str:
    return f"\n### {title}\n\n{markdown(table)}"


def _machines(results: Sequence[Result]) -> str:
    """What computed the results, each kind once."""
    kinds = dict.fromkeys(
        f"{r.machine['processor']}, {r.machine['cores']} cores, {r.machine['threads']} threads per run, "
        f"{r.machine['gpu'] or 'no GPU'}; torch {r.versions['torch']}, tenfold {r.versions['tenfold']}"
        for r in results
    )
    trials = sum(result.kind == "trial" for result in results)
    lines = "".join(f"- {kind}\n" for kind in kinds)
    return f"{len(results) - trials} runs and {trials} trials of learning rates, computed on:\n\n{lines}"
