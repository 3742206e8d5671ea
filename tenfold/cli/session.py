"""One training run before the eyes of the user, up to its end or to Ctrl-C."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from tenfold.cli.display import display
from tenfold.cli.errors import INTERRUPTED, complain, deaf_to_interrupts
from tenfold.experiments import checkpoint
from tenfold.experiments.config import TrainConfig
from tenfold.experiments.processes import TIMEOUT, leads
from tenfold.experiments.runs import CHECKPOINT
from tenfold.experiments.training import train


def train_visibly(
    config: TrainConfig, folder: Path, resume: bool, again: str, timeout: float = TIMEOUT
) -> int:
    """Train and show it.

    Parameters
    ----------
    config : TrainConfig
        The run.
    folder : Path
        Where its files go.
    resume : bool
        Go on after the last checkpoint in `folder`.
    again : str
        The command that resumes the run, told after Ctrl-C.
    timeout : float
        Seconds that processes of one run wait for each other.

    Returns
    -------
    int
        The exit code: 0, or 130 after Ctrl-C.

    Raises
    ------
    ValueError, OSError
        As :func:`tenfold.experiments.training.train`.
    """
    try:
        with display() if leads() else nullcontext(None) as observer:
            train(config, folder, resume=resume, observer=observer, timeout=timeout)
    except KeyboardInterrupt:
        if not leads():
            return INTERRUPTED
        with deaf_to_interrupts():
            path = folder / CHECKPOINT
            if path.is_file():
                complain(f"stopped; {_kept(path, config)} are kept. Go on with: {again}")
            else:
                complain("stopped before the first checkpoint; nothing is kept")
        return INTERRUPTED
    return 0


def _kept(path: Path, config: TrainConfig) -> str:
    saved = checkpoint.read(path)
    epochs = f"{saved['epoch']} of {config.epochs} epochs"
    steps = 0 if saved["progress"] is None else saved["progress"]["done"]
    return f"{epochs} and {steps} steps of the next" if steps else epochs
