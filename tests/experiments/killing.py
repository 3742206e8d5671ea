"""Training runs in processes of their own that are killed at a chosen event.

As a program it waits for runs on its standard input, one line of JSON each, and forks for each of them: torch
is loaded once, and a process that dies costs a tenth of a second.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tenfold.experiments import checkpoint
from tenfold.experiments.config import TrainConfig
from tenfold.experiments.observer import Observer
from tenfold.experiments.training import train

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Kill:
    """The moment at which a process kills itself, without another word.

    Events are calls and returns of functions, also of those in C, since the training began; with `writing`
    only those while a checkpoint is written.
    """

    event: int
    writing: bool


class Processes:
    """Starts a process for every run."""

    def __enter__(self) -> Processes:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.experiments.killing"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate(timeout=60)

    def run(self, config: TrainConfig, folder: Path, log: Path, kill: Kill | None = None) -> int:
        """Train, or go on, and return the exit code; minus the signal that ended the process."""
        job = {"config": config.to_dict(), "folder": str(folder), "log": str(log)}
        job["kill"] = None if kill is None else asdict(kill)
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(job), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())


def work(job: dict[str, Any]) -> None:
    """Train, or go on; tell `log` about every step, and at the end how many events there were."""
    kill = None if job["kill"] is None else Kill(**job["kill"])
    descriptor = os.open(job["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
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

    folder = Path(job["folder"])
    resume = (folder / "checkpoint.pt").exists()
    train(TrainConfig.from_dict(job["config"]), folder, resume=resume, observer=Log())
    sys.setprofile(None)
    os.write(descriptor, f"events {events['all']} {events['writing']}\n".encode())


def serve() -> None:
    """Fork for every line of the standard input, and answer with the exit code."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work(json.loads(line))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
