"""The training of one run, from its configuration to the files in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tenfold.experiments import checkpoint
from tenfold.experiments.batches import steps_per_epoch
from tenfold.experiments.compression import ranks
from tenfold.experiments.config import TrainConfig
from tenfold.experiments.data import DataSet, load
from tenfold.experiments.epoch import train_epoch
from tenfold.experiments.evaluation import evaluate
from tenfold.experiments.methods import make_network, make_optimizer, make_scheduler
from tenfold.experiments.metrics import write_records
from tenfold.experiments.observer import Observer
from tenfold.experiments.plots import plot_ranks
from tenfold.experiments.processes import TIMEOUT, Processes, joined
from tenfold.experiments.report import write_report
from tenfold.experiments.runs import CHECKPOINT, METRICS, RANKS_PLOT, REPORT, Run, write_config
from tenfold.experiments.state import TrainingState
from tenfold.experiments.stepping import MAX_ROLLBACKS, Diverged, NotFinite, advice, make_guard

__all__ = ["Diverged", "evaluate", "train"]


def train(
    config: TrainConfig,
    folder: Path,
    *,
    resume: bool = False,
    observer: Observer | None = None,
    timeout: float = TIMEOUT,
) -> Run:
    """Train a network and write what happens to `folder`.

    After every epoch ``checkpoint.pt`` and ``metrics.jsonl`` are replaced, each in one step, and the
    checkpoint after every ``config.checkpoint_every`` steps, too. An interruption at any moment
    (``KeyboardInterrupt`` passes through), even by a signal that kills, leaves the last checkpoint. At the
    end ``report.md`` and, if there are factored layers, ``ranks.png`` are written. On the CPU a resumed run
    computes bit for bit what the uninterrupted run would have.

    Started by torchrun in several processes, each trains on its part of every batch. Process 0 writes, into a
    folder that all must see, and tells. The number of processes may change when a run is resumed.

    Parameters
    ----------
    config : TrainConfig
        The run.
    folder : Path
        Created if need be.
    resume : bool
        Go on after the last checkpoint in `folder` instead of starting.
    observer : Observer, optional
        Told about steps and epochs; in process 0 only.
    timeout : float
        Seconds that processes wait for one that has died or hangs.

    Returns
    -------
    Run
        The finished run.

    Raises
    ------
    FileNotFoundError
        A data file is missing, or there is no checkpoint to resume.
    OSError
        A file cannot be written; the last checkpoint is as it was.
    ValueError
        `folder` holds a run already, or the checkpoint of another one; the device is not there; a batch is
        larger than the data set, or cannot be shared out; the compression is out of reach.
    Diverged
        The loss is not finite any more (a ValueError, too), or was so too often for ``config.on_nan``.
    """
    with joined(config.device, timeout) as processes:
        heard = observer if observer is not None and processes.first else Observer()
        return _train(config, folder, resume, heard, processes)


def _train(config: TrainConfig, folder: Path, resume: bool, observer: Observer, processes: Processes) -> Run:
    device = _device(config.device)
    processes.check_batch_size(config.batch_size)
    path = folder / CHECKPOINT
    saved = None
    if resume:
        saved = checkpoint.read(path)
        checkpoint.check_same_run(path, saved, config)
        if saved["torch"] != str(torch.__version__):
            observer.noted(
                f"the checkpoint was written with torch {saved['torch']}; results may differ slightly"
            )
    elif path.exists():
        raise ValueError(f"{folder} already holds a run: resume it with --resume, or choose another --out")
    data = load(config.data, config.data_dir).to(device)
    steps = steps_per_epoch(data, config.batch_size)
    state = _state(config, data, device, path, saved, processes)
    processes.wait()  # until all have seen the folder as it was
    if processes.first:
        folder.mkdir(parents=True, exist_ok=True)
        write_config(folder, config)

    def save() -> None:
        if processes.first:
            checkpoint.save(path, state)

    observer.started(config, steps, state.epoch)
    if state.progress is not None:
        observer.noted(f"going on after step {state.progress.done} of {steps} in epoch {state.epoch + 1}")
    while state.epoch < config.epochs:
        try:
            record = train_epoch(state, data, observer, save)
        except NotFinite as error:
            if state.rollbacks >= MAX_ROLLBACKS:
                raise Diverged(f"{error}, after {MAX_ROLLBACKS} rollbacks; {advice(config)}") from error
            rollbacks = state.rollbacks + 1
            saved = checkpoint.read(path) if path.is_file() else None
            state = _state(config, data, device, path, saved, processes)
            _draw_anew(state, rollbacks)
            observer.noted(f"{error}; rollback {rollbacks} of {MAX_ROLLBACKS}, to step {state.step}")
            continue
        if processes.first:
            write_records(folder / METRICS, state.records)
        save()  # last: what it names as done is there
        observer.epoch_finished(record)
    run = Run(folder, config, state.records)
    if not processes.first:
        return run
    write_records(folder / METRICS, state.records)
    write_report(folder / REPORT, [run])
    if config.method == "tucker":
        plot_ranks(folder / RANKS_PLOT, state.rank_history, state.step)
    return run


def _state(
    config: TrainConfig,
    data: DataSet,
    device: torch.device,
    path: Path,
    saved: dict[str, Any] | None,
    processes: Processes,
) -> TrainingState:
    """The state that was saved at `path`, or the one at the start."""
    torch.manual_seed(config.seed)
    steps = steps_per_epoch(data, config.batch_size) * config.epochs
    model = make_network(config, data).to(device)
    optimizer = make_optimizer(config, model, steps)
    scheduler = make_scheduler(config, optimizer, steps)
    state = TrainingState(config, model, optimizer, scheduler, make_guard(config, optimizer))
    state.rank_history = [(0, ranks(model))]
    if saved is not None:
        checkpoint.restore(path, saved, state)
        try:
            _check_steps(state, data)
        except ValueError as error:
            raise ValueError(f"{path} does not fit the data set {config.data!r}: {error}") from error
    state.processes = processes
    state.parallel = processes.wrapped(model)
    return state


def _check_steps(state: TrainingState, data: DataSet) -> None:
    """Refuse what was trained on another number of images."""
    steps, done = steps_per_epoch(data, state.config.batch_size), 0
    if state.progress is not None:
        state.progress.check(len(data.train), steps)
        done = state.progress.done
    due = state.epoch * steps + done
    if state.step != due:
        raise ValueError(f"{state.step} steps are done, and with {len(data.train)} images it would be {due}")


def _draw_anew(state: TrainingState, rollbacks: int) -> None:
    """Let the batches that follow be others than those after the earlier rollbacks."""
    state.rollbacks = rollbacks
    if state.progress is not None:
        state.progress.redraw(state.seed, state.config.batch_size)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")  # the one that joined() chose
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} is not available here ({str(error).splitlines()[0]})") from error
    return device
