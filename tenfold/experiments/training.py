"""The training loop of one run, from its configuration to the files in its folder."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from tenfold.experiments import checkpoint
from tenfold.experiments.batches import epoch_seed, evaluation_batches, steps_per_epoch, training_batches
from tenfold.experiments.checkpoint import TrainingState
from tenfold.experiments.compression import Compression, ranks
from tenfold.experiments.config import TrainConfig
from tenfold.experiments.data import DataSet, load
from tenfold.experiments.memory import peak_memory
from tenfold.experiments.methods import make_network, make_optimizer, make_scheduler
from tenfold.experiments.metrics import LOSS_WINDOW, EpochRecord, write_records
from tenfold.experiments.observer import Observer, Step
from tenfold.experiments.plots import plot_ranks
from tenfold.experiments.pruning import prune_on_schedule
from tenfold.experiments.report import write_report
from tenfold.experiments.runs import CHECKPOINT, METRICS, RANKS_PLOT, REPORT, Run, write_config

_EVALUATION_BATCH = 500
_NOT_FINITE = ("nothing was changed", "NaN or infinity")  # in the words of optimizers on manifolds
_STEPS_BETWEEN_LOOKS = 20  # on devices where reading a number waits for all the work before it


class Diverged(ValueError):
    """The loss is not finite any more."""


def train(
    config: TrainConfig, folder: Path, *, resume: bool = False, observer: Observer | None = None
) -> Run:
    """Train a network and write what happens to `folder`.

    After every epoch ``checkpoint.pt`` and ``metrics.jsonl`` are replaced, each in one step; an interruption
    at any moment (``KeyboardInterrupt`` passes through) leaves the last finished epoch. At the end
    ``report.md`` and, if there are factored layers, ``ranks.png`` are written. On the CPU a resumed run
    computes bit for bit what the uninterrupted run would have.

    Parameters
    ----------
    config : TrainConfig
        The run.
    folder : Path
        Created if need be.
    resume : bool
        Go on after the last finished epoch in `folder` instead of starting.
    observer : Observer, optional
        Told about steps and epochs.

    Returns
    -------
    Run
        The finished run.

    Raises
    ------
    FileNotFoundError
        A data file is missing, or there is no checkpoint to resume.
    ValueError
        `folder` holds a run already, or the checkpoint of another one; the device is not there; a batch is
        larger than the data set; the compression is out of reach.
    Diverged
        The loss is not finite any more (a ValueError, too).
    """
    observer = observer or Observer()
    device = _device(config.device)
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
    state = _fresh_state(config, data, device, steps)
    if saved is not None:
        checkpoint.restore(path, saved, state)
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, config)
    observer.started(config, steps, state.epoch)
    while state.epoch < config.epochs:
        record = _epoch(state, data, device, observer)
        write_records(folder / METRICS, state.records)
        checkpoint.save(path, state)  # last: what it names as done is there
        observer.epoch_finished(record)
    run = Run(folder, config, state.records)
    write_records(folder / METRICS, state.records)
    write_report(folder / REPORT, [run])
    if config.method == "tucker":
        plot_ranks(folder / RANKS_PLOT, state.rank_history, state.step)
    return run


def evaluate(model: nn.Module, data: DataSet, *, amp: bool = False) -> tuple[float, float]:
    """Mean cross entropy (in nats) and fraction of right answers of `model` on the test split.

    Parameters
    ----------
    model : nn.Module
        On the device of `data`; left in the mode it was in.
    data : DataSet
        Its test split is used.
    amp : bool
        Run the network in bfloat16 autocast.
    """
    was_training = model.training
    model.eval()
    loss = torch.zeros((), device=data.test.labels.device, dtype=torch.float64)
    right = torch.zeros((), device=data.test.labels.device, dtype=torch.int64)
    with torch.no_grad():
        for images, labels in evaluation_batches(data, _EVALUATION_BATCH):
            with _precision(amp, images.device):
                logits = model(_laid_out(images))
            loss += nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
            right += (logits.argmax(dim=1) == labels).sum()
    model.train(was_training)
    return loss.item() / len(data.test), right.item() / len(data.test)


def _fresh_state(config: TrainConfig, data: DataSet, device: torch.device, steps: int) -> TrainingState:
    torch.manual_seed(config.seed)
    model = make_network(config, data).to(device)
    optimizer = make_optimizer(config, model, steps * config.epochs)
    scheduler = make_scheduler(config, optimizer, steps * config.epochs)
    return TrainingState(config, model, optimizer, scheduler, rank_history=[(0, ranks(model))])


def _epoch(state: TrainingState, data: DataSet, device: torch.device, observer: Observer) -> EpochRecord:
    """Train one epoch, evaluate, and append the record to `state`."""
    config, epoch = state.config, state.epoch + 1
    seed = epoch_seed(config.seed, epoch)
    torch.manual_seed(seed)  # for dropout
    batches = training_batches(data, config.batch_size, torch.Generator().manual_seed(seed))
    steps = steps_per_epoch(data, config.batch_size)
    look_every = 1 if device.type == "cpu" else _STEPS_BETWEEN_LOOKS
    compression = Compression.of(state.model)
    total, lr, losses = torch.zeros((), device=device), 0.0, []
    state.model.train()
    started = time.perf_counter()
    for number, (images, labels) in enumerate(batches, start=1):
        lr = state.optimizer.param_groups[0]["lr"]
        loss = _step(state, images, labels)
        total += loss
        losses.append(loss)
        present = ranks(state.model)
        changed = prune_on_schedule(state.model, config, state.step, steps * config.epochs)
        if present != state.rank_history[-1][1]:
            state.rank_history.append((state.step, present))
            changed = True
        if changed:
            compression = Compression.of(state.model)
        if number % look_every == 0 or number == steps:
            _check_finite(total.item(), config, epoch, number)
            observer.stepped(Step(epoch, number, loss.item(), present, compression))
    seconds = (time.perf_counter() - started) / steps
    test_loss, test_accuracy = evaluate(state.model, data, amp=config.amp)
    record = EpochRecord(
        epoch=epoch,
        step=state.step,
        train_loss=total.item() / steps,
        test_loss=test_loss,
        test_accuracy=test_accuracy,
        parameters=compression.parameters,
        dense_parameters=compression.dense_parameters,
        compression_convolutions=compression.convolutions,
        compression_factored=compression.factored,
        compression_network=compression.network,
        ranks=state.rank_history[-1][1],
        seconds_per_step=seconds,
        lr=lr,
        peak_memory=peak_memory(device),
        losses=[window.mean().item() for window in torch.stack(losses).split(LOSS_WINDOW)],
    )
    state.epoch = epoch
    state.records.append(record)
    return record


def _step(state: TrainingState, images: Tensor, labels: Tensor) -> Tensor:
    """One optimizer and scheduler step; returns the loss of the batch."""
    with _precision(state.config.amp, images.device):
        logits = state.model(_laid_out(images))
    loss = nn.functional.cross_entropy(logits.float(), labels)
    state.optimizer.zero_grad()
    loss.backward()
    try:
        state.optimizer.step()
    except (ValueError, torch.linalg.LinAlgError) as error:
        if isinstance(error, ValueError) and not any(words in str(error) for words in _NOT_FINITE):
            raise
        raise Diverged(
            f"{error}: training diverged in step {state.step + 1}; "
            f"try a learning rate below {state.config.lr:g}"
        ) from error
    state.scheduler.step()
    state.step += 1
    return loss.detach()


def _laid_out(images: Tensor) -> Tensor:
    """Channels last, which the convolutions of every method run faster in."""
    return images.contiguous(memory_format=torch.channels_last)


def _precision(amp: bool, device: torch.device) -> contextlib.AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16) if amp else contextlib.nullcontext()


def _check_finite(loss: float, config: TrainConfig, epoch: int, step: int) -> None:
    if not math.isfinite(loss):
        raise Diverged(
            f"the loss is {loss} in epoch {epoch}, step {step}: training diverged; "
            f"try a learning rate below {config.lr:g}"
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} is not available here ({str(error).splitlines()[0]})") from error
    return device
