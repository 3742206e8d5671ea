"""Running a sweep: what is not done yet, several processes at a time, resumable at any moment."""

from __future__ import annotations

import math
import multiprocessing
import multiprocessing.connection
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tenfold.atomic import write_text
from tenfold.experiments.config import TrainConfig
from tenfold.experiments.grid import Entry, Sweep, run_id
from tenfold.experiments.processes import Processes
from tenfold.experiments.result import Result, append_result, read_results
from tenfold.experiments.runs import CHECKPOINT
from tenfold.experiments.summary import in_words
from tenfold.experiments.sweep_job import RESULT, Job, work
from tenfold.experiments.sweep_lock import locked
from tenfold.untrusted.text import read_text

RESULTS = "results.jsonl"
_RUNS = "runs"

Teller = Callable[[str], None]


@dataclass
class SweepRunner:
    """Carries out a sweep in a folder.

    ``results.jsonl`` gets a line for every trial and run that is done; ``runs/`` holds the folders of those
    that are under way, and of what they left. What has a line is not run again. Killed at any moment and
    started again, a sweep goes on after the last finished epoch of every run. Files are only read until
    :meth:`run`, and one sweep at a time runs in a folder.

    Parameters
    ----------
    sweep : Sweep
        What to run.
    folder : Path
        Created if need be.
    jobs : int
        Processes at a time, each with its share of the processor's cores (or ``OMP_NUM_THREADS`` of them).
    tell : callable
        Receives one line about whatever happens.
    processes : Processes
        Those that share the work, each with `jobs` of its own; process 0 writes ``results.jsonl``. The folder
        must be seen by all.

    Raises
    ------
    ValueError
        `jobs` is not positive, or a line of ``results.jsonl`` is damaged.
    """

    sweep: Sweep
    folder: Path
    jobs: int = 1
    tell: Teller = print
    processes: Processes = field(default_factory=Processes)
    _done: dict[str, Result] = field(default_factory=dict, init=False)
    _failed: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ValueError(f"jobs must be at least 1, not {self.jobs}")
        self._read()

    def run(self) -> bool:
        """Do what is left to do: the trials, then the runs.

        Returns
        -------
        bool
            Whether everything is done; otherwise what failed has been told.

        Raises
        ------
        KeyboardInterrupt
            After Ctrl-C, with every process ended.
        ValueError
            Another sweep is running in the folder, or a line of ``results.jsonl`` is damaged.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder) if self.processes.first else nullcontext():
            self._mend()
            return self._run()

    def _run(self) -> bool:
        self._share_out([self._job(trial, "trial", None) for trial in self.sweep.trials])
        chosen = [run for run in map(self._chosen, self.sweep.entries) if run is not None]
        self._share_out([self._job(config, "run", tuning) for config, tuning in chosen])
        for line in self._failed:
            self.tell(f"not done: {line}")
        return not self._failed

    def left(self) -> tuple[int, int]:
        """Numbers of trials and of runs that are not done; a run whose trials are not done counts."""
        trials = sum(run_id(trial) not in self._done for trial in self.sweep.trials)
        runs = 0
        for entry in self.sweep.entries:
            open_trials = any(run_id(trial) not in self._done for trial in entry.trials)
            runs += open_trials or run_id(self._best(entry)[0]) not in self._done
        return trials, runs

    def _read(self) -> list[Result]:
        """What is done, as the file has it."""
        path = self.folder / RESULTS
        results = read_results(path) if path.is_file() else []
        self._done = {result.id: result for result in results}
        return results

    def _mend(self) -> None:
        """Read the file again, which another sweep may have written to, and mend what a killed one left."""
        path = self.folder / RESULTS
        if self.processes.first:
            results = self._read()
            torn = path.is_file() and not read_text(path).endswith("\n")
            if torn or len(self._done) < len(results):
                write_text(path, "".join(result.to_line() for result in self._done.values()))
        self.processes.wait()
        if not self.processes.first:
            self._read()

    def _job(self, config: TrainConfig, kind: str, tuning: dict[str, Any] | None) -> Job:
        return Job(config, self.folder / _RUNS / run_id(config), self.sweep.name, kind, tuning)

    # Learning rates ---------------------------------------------------------------------------

    def _chosen(self, entry: Entry) -> tuple[TrainConfig, dict[str, Any] | None] | None:
        """The run at its best rate; None, and told, if there is none."""
        if any(run_id(trial) not in self._done for trial in entry.trials):
            self._failed.append(f"{describe(entry.config)}: a trial of its learning rates is not done")
            return None
        config, tuning = self._best(entry)
        if tuning is not None and all(loss is None for _, loss in tuning["rates"]):
            self._failed.append(f"{describe(entry.config)}: every learning rate diverged; add smaller ones")
            return None
        return config, tuning

    def _best(self, entry: Entry) -> tuple[TrainConfig, dict[str, Any] | None]:
        """By the training loss over the last quarter of the trial: the test images decide nothing."""
        if not entry.trials:
            return entry.config, None
        losses = [self._done[run_id(trial)].final_loss for trial in entry.trials]
        order = [math.inf if loss is None or math.isnan(loss) else loss for loss in losses]
        best = entry.trials[order.index(min(order))]
        tuning = {
            "rates": [[trial.lr, loss] for trial, loss in zip(entry.trials, losses, strict=True)],
            "epochs": best.epochs,
            "seed": best.seed,
        }
        return replace(entry.config, lr=best.lr), tuning

    # Processes --------------------------------------------------------------------------------

    def _share_out(self, jobs: Sequence[Job]) -> None:
        """Every process does its share; then process 0 collects what the others have left."""
        once = {run_id(job.config): job for job in jobs}  # blocks with other rates may come to the same run
        left = [job for name, job in once.items() if name not in self._done]
        self.processes.wait()  # until all have read the same list
        self._work_off(left[self.processes.number :: self.processes.count])
        self.processes.wait()
        if self.processes.count == 1:
            return
        if self.processes.first:
            for job in left:
                if run_id(job.config) not in self._done:
                    self._record(job, len(left), len(left))
        self.processes.wait()
        if not self.processes.first:
            self._read()

    def _work_off(self, jobs: Sequence[Job]) -> None:
        waiting = list(reversed(jobs))
        total, context, threads = len(waiting), _context(), threads_of_each(self.jobs)
        running: list[tuple[BaseProcess, Job]] = []
        try:
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    job = waiting.pop()
                    if (job.folder / RESULT).is_file():  # killed before its line was written
                        self._record(job, total - len(waiting), total)
                        continue
                    process: BaseProcess = context.Process(target=work, args=(job, threads))  # type: ignore[attr-defined]
                    process.start()
                    running.append((process, job))
                if running:
                    multiprocessing.connection.wait([process.sentinel for process, _ in running])
                for ended, job in [pair for pair in running if not pair[0].is_alive()]:
                    running.remove((ended, job))
                    ended.join()
                    self._record(job, total - len(waiting) - len(running), total)
        finally:
            for process, _ in running:
                process.terminate()
                process.join()

    def _record(self, job: Job, number: int, total: int) -> None:
        path = job.folder / RESULT
        if not path.is_file():
            self._failed.append(f"{describe(job.config)}: its process ended without a result")
            return
        # The result is all that is needed of a finished run, also of one killed right after it was written.
        (job.folder / CHECKPOINT).unlink(missing_ok=True)
        if not self.processes.first:
            return  # process 0 collects it
        try:
            result = Result.from_line(read_text(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        append_result(self.folder / RESULTS, result)
        self._done[result.id] = result
        self.tell(f"{job.kind} {number} of {total}: {describe(job.config)}: {_outcome(result)}")


def threads_of_each(jobs: int) -> int:
    """Threads of one of so many processes: as OMP_NUM_THREADS says (of a list the first), or its share."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    asked = int(given) if given.isdecimal() else 0
    return asked or max(1, (os.cpu_count() or 1) // jobs)


def _context() -> BaseContext:
    """Fresh processes; where the system can, copies of one that has loaded torch but done nothing yet."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tenfold.experiments.training"])
    return context


def describe(config: TrainConfig) -> str:
    """A run in a few words."""
    shown = {name: getattr(config, name) for name in ("tau", "rank", "compression", "decay", "ranks")}
    given = [in_words(name, value) for name, value in shown.items() if value is not None]
    words = [
        config.model,
        config.method,
        config.optimizer,
        *given,
        f"lr {config.lr:g}",
        f"seed {config.seed}",
    ]
    return " ".join(words)


def _outcome(result: Result) -> str:
    if not result.finished:
        return "diverged"
    last = result.last
    return (
        f"{100 * last['test_accuracy']:.2f} %, compression {100 * last['compression_factored']:.1f} %, "
        f"{result.seconds:.0f} s"
    )
