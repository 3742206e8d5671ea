"""Training runs in processes of their own that are killed at a chosen event."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from tenfold.experiments.config import TrainConfig

PRELOAD = ["tenfold.experiments.training", "tests.experiments.killing", "pytest"]


@dataclass(frozen=True)
class Kill:
    """The moment at which a process kills itself, without another word.

    Events are calls and returns of functions, also of those in C, since the training began; with `writing`
    only those while a checkpoint is written.
    """

    event: int
    writing: bool


def run(config: TrainConfig, folder: Path, log: Path, kill: Kill | None) -> int:
    """Train, or go on, in a process of its own; its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=_train, args=(config, folder, log, kill))
    process.start()
    process.join(120)
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode


def _train(config: TrainConfig, folder: Path, log: Path, kill: Kill | None) -> None:
    import torch

    from tenfold.experiments import checkpoint
    from tenfold.experiments.observer import Observer
    from tenfold.experiments.training import train

    torch.set_num_threads(1)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    events = {"all": 0, "writing": 0}
    depth = 0

    def profile(frame, event, argument):
        nonlocal depth
        inside = frame.f_code is checkpoint.save.__code__
        depth += inside and event == "call"
        events["all"] += 1
        events["writing"] += depth > 0
        depth -= inside and event == "return"
        if kill is not None and events["writing" if kill.writing else "all"] > kill.event:
            os.kill(os.getpid(), signal.SIGKILL)

    class Log(Observer):
        def started(self, config, steps_per_epoch, epochs_done):
            self.steps_per_epoch = steps_per_epoch
            os.write(descriptor, b"started\n")
            sys.setprofile(profile)

        def stepped(self, step):
            done = (step.epoch - 1) * self.steps_per_epoch + step.step
            os.write(descriptor, f"{done}\n".encode())

    train(config, folder, resume=(folder / "checkpoint.pt").exists(), observer=Log())
    sys.setprofile(None)
    os.write(descriptor, f"events {events['all']} {events['writing']}\n".encode())
