"""One training run before the eyes of the user, up to its end or to Ctrl-C."""

from __future__ import annotations

from pathlib import Path

from tenfold.cli.display import display
from tenfold.cli.errors import INTERRUPTED, complain, deaf_to_interrupts
from tenfold.experiments import checkpoint
from tenfold.experiments.config import TrainConfig
from tenfold.experiments.runs import CHECKPOINT
from tenfold.experiments.training import train


def train_visibly(config: TrainConfig, folder: Path, resume: bool, again: str) -> int:
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
        with display() as observer:
            train(config, folder, resume=resume, observer=observer)
    except KeyboardInterrupt:
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
