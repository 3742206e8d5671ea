"""A second run in a fresh process, so that its time and memory are measured as those of the first were."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path

from tenfold.cli.errors import (
    INTERRUPTED,
    complain,
    deaf_to_interrupts,
    exit_code_of,
    write_out_what_cannot_be_shown,
)
from tenfold.experiments.config import TrainConfig


def train_apart(config: TrainConfig, folder: Path, resume: bool, again: str) -> int:
    """Do what :func:`tenfold.cli.session.train_visibly` does, in another process.

    Ctrl-C is passed on to it, and it answers.
    """
    process = multiprocessing.get_context("spawn").Process(
        target=_child, args=(config, folder, resume, again)
    )
    process.start()
    try:
        process.join()
    except KeyboardInterrupt:
        with deaf_to_interrupts():
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGINT)
            process.join()
        return INTERRUPTED
    code = process.exitcode or 0
    if code < 0:
        complain(f"the process that trained the network in {folder} was killed by signal {-code}")
        return 1
    return code


def _child(config: TrainConfig, folder: Path, resume: bool, again: str) -> None:
    def action() -> int:
        from tenfold.cli.session import (
            train_visibly,
        )  # late, so that Ctrl-C while torch loads is answered too

        return train_visibly(config, folder, resume, again)

    write_out_what_cannot_be_shown()
    sys.exit(exit_code_of(action))
