"""One epoch of a run: its steps, its checkpoints, its record."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from tenfold.experiments.batches import steps_per_epoch, training_batches
from tenfold.experiments.compression import Compression, ranks
from tenfold.experiments.data import DataSet
from tenfold.experiments.evaluation import evaluate
from tenfold.experiments.memory import peak_memory
from tenfold.experiments.metrics import LOSS_WINDOW, EpochRecord
from tenfold.experiments.observer import Observer, Step
from tenfold.experiments.pruning import prune_on_schedule
from tenfold.experiments.rewinding import rewind_on_schedule
from tenfold.experiments.state import Progress, TrainingState
from tenfold.experiments.stepping import advice, check_finite, check_state, take_step

_STEPS_BETWEEN_LOOKS = 20  # on devices where reading a number waits for all the work before it


def train_epoch(
    state: TrainingState, data: DataSet, observer: Observer, save: Callable[[], None]
) -> EpochRecord:
    """Train what is left of the epoch, evaluate, and append the record to `state`.

    Parameters
    ----------
    state : TrainingState
        Of the run; its progress says how far the epoch is.
    data : DataSet
        On the device of the run.
    observer : Observer
        Told about the steps.
    save : callable
        Called after every ``checkpoint_every`` steps of the run, except at the end of the epoch.

    Raises
    ------
    Diverged, NotFinite
        As :func:`tenfold.experiments.stepping.take_step`.
    """
    config, epoch, device = state.config, state.epoch + 1, data.train.images.device
    steps = steps_per_epoch(data, config.batch_size)
    if state.progress is None:
        state.progress = Progress.begin(state.seed, len(data.train), device)
    progress = state.progress
    look_every = 1 if device.type == "cpu" else _STEPS_BETWEEN_LOOKS
    compression = Compression.of(state.model)
    state.model.train()
    started = time.perf_counter() - progress.seconds
    batches = training_batches(
        data, config.batch_size, progress.generator, order=progress.order, start=progress.done
    )
    for images, labels in batches:
        progress.lr = state.optimizer.param_groups[0]["lr"]
        loss, taken = take_step(state, images, labels)
        progress.done += 1
        if taken:
            progress.total += loss
            progress.losses.append(loss)
        else:
            assert state.guard is not None  # nothing else leaves a step out
            progress.skipped += 1
            observer.noted(f"step {state.step} was skipped: {state.guard.error}")
        present = ranks(state.model)
        changed = prune_on_schedule(state.model, config, state.step, steps * config.epochs)
        changed |= rewind_on_schedule(state, steps * config.epochs)
        if present != state.rank_history[-1][1]:
            state.rank_history.append((state.step, present))
            changed = True
        if changed:
            compression = Compression.of(state.model)
        if progress.done % look_every == 0 or progress.done == steps:
            check_finite(progress.total.item(), config, epoch, progress.done)
            observer.stepped(Step(epoch, progress.done, loss.item(), present, compression))
        if config.checkpoint_every and state.step % config.checkpoint_every == 0 and progress.done < steps:
            progress.seconds = time.perf_counter() - started
            check_state(state)
            save()
            started = time.perf_counter() - progress.seconds
    progress.seconds = time.perf_counter() - started
    check_state(state)
    record = _record(state, progress, data, compression)
    if not math.isfinite(record.test_loss):
        observer.noted(f"the test loss is {record.test_loss} after epoch {epoch}; {advice(config)}")
    state.epoch, state.progress = epoch, None
    state.records.append(record)
    return record


def _record(state: TrainingState, progress: Progress, data: DataSet, compression: Compression) -> EpochRecord:
    state.processes.share_buffers(state.model)
    test_loss, test_accuracy = evaluate(state.model, data, amp=state.config.amp, processes=state.processes)
    windows = torch.stack(progress.losses).split(LOSS_WINDOW) if progress.losses else ()
    return EpochRecord(
        epoch=state.epoch + 1,
        step=state.step,
        train_loss=progress.total.item() / len(progress.losses) if progress.losses else math.nan,
        test_loss=test_loss,
        test_accuracy=test_accuracy,
        parameters=compression.parameters,
        dense_parameters=compression.dense_parameters,
        compression_convolutions=compression.convolutions,
        compression_factored=compression.factored,
        compression_network=compression.network,
        ranks=state.rank_history[-1][1],
        seconds_per_step=progress.seconds / progress.done,
        lr=progress.lr,
        peak_memory=peak_memory(data.train.images.device),
        losses=[window.mean().item() for window in windows],
        skipped=progress.skipped,
        rollbacks=state.rollbacks - sum(record.rollbacks for record in state.records),
    )
