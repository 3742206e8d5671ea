"""One run of a sweep, in a process of its own that ends when the sweep does."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.experiments.config import TrainConfig

RESULT = "result.json"


@dataclass(frozen=True)
class Job:
    """What a process has to do.

    Parameters
    ----------
    config : TrainConfig
        The run.
    folder : Path
        Where its files go; ``result.json`` is there when it is done.
    sweep : str
        Name of the sweep.
    kind : {"run", "trial"}
        See :class:`~tenfold.experiments.result.Result`.
    tuning : dict, optional
        How the learning rate was chosen.
    """

    config: TrainConfig
    folder: Path
    sweep: str
    kind: str
    tuning: dict[str, Any] | None = None


def work(job: Job, threads: int) -> None:
    """Do `job`, going on where an earlier process stopped; after a mistake say so and exit with 2.

    Called in a process that was started for it, whose peak memory is then the run's.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the sweep's business
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    from tenfold.experiments.processes import forget_launch

    torch.set_num_threads(threads)
    forget_launch()  # a sweep shares out runs to the processes of torchrun, not batches
    try:
        _train(job)
    except (ValueError, OSError) as error:
        print("tenfold:", " ".join(str(error).split()), file=sys.stderr, flush=True)
        sys.exit(2)


def _train(job: Job) -> None:
    from tenfold.atomic import write_text
    from tenfold.experiments import checkpoint
    from tenfold.experiments.metrics import read_records
    from tenfold.experiments.result import Result
    from tenfold.experiments.runs import CHECKPOINT, METRICS
    from tenfold.experiments.training import Diverged, train

    path = job.folder / CHECKPOINT
    try:
        train(job.config, job.folder, resume=path.is_file())
        finished = True
    except Diverged:
        finished = False
    records = read_records(job.folder / METRICS) if (job.folder / METRICS).is_file() else []
    history = checkpoint.read(path)["rank_history"] if path.is_file() else []
    result = Result.of(job.config, job.sweep, job.tuning, job.kind, records, history, finished)
    write_text(job.folder / RESULT, result.to_line())


def _end_with_parent() -> None:
    """However the sweep ends, even killed: nobody may go on writing to the folder of a run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
