"""One step of a run, and what becomes of it if it is not finite."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from tenfold.experiments.config import TrainConfig
from tenfold.experiments.evaluation import logits_of
from tenfold.experiments.state import TrainingState
from tenfold.linalg import NonFiniteError
from tenfold.optim import StepGuard, StepOutcome

MAX_SKIPPED_IN_A_ROW = 10
MAX_SKIPPED = 1000
MAX_ROLLBACKS = 10


class Diverged(ValueError):
    """The loss is not finite any more."""


class NotFinite(Exception):
    """A step of a run that goes back to its last checkpoint then."""


def make_guard(config: TrainConfig, optimizer: torch.optim.Optimizer) -> StepGuard | None:
    """What looks at every step; None where an error of the optimizer, or a look at the loss, is enough.

    A rollback is not the guard's: it goes back to the file.
    """
    if config.on_nan == "raise":
        return None
    if config.on_nan == "rollback":
        return StepGuard(optimizer)
    return StepGuard(optimizer, "skip", max_in_a_row=MAX_SKIPPED_IN_A_ROW, max_skipped=MAX_SKIPPED)


def take_step(state: TrainingState, images: Tensor, labels: Tensor) -> tuple[Tensor, bool]:
    """One optimizer and scheduler step.

    Parameters
    ----------
    state : TrainingState
        Of the run.
    images, labels : Tensor
        The joint batch, of which every process takes its part.

    Returns
    -------
    loss : Tensor
        Of the batch.
    taken : bool
        Whether the weights have moved; a skipped step counts in the schedule, too.

    Raises
    ------
    Diverged
        The step is not finite.
    NotFinite
        The step is not finite, and the run is to go back.
    """
    part = state.processes.part
    # The forward pass of a step that is left out must leave no running statistics.
    buffers = [(b, b.clone()) for b in state.model.buffers()] if state.config.on_nan == "skip" else []
    loss = loss_of(state, part(images), part(labels))
    state.optimizer.zero_grad()
    loss.backward()
    loss = state.processes.mean(loss.detach())
    try:
        taken = _move(state, loss)
    except (NonFiniteError, torch.linalg.LinAlgError) as error:
        raise _diverged(f"{error}: training diverged in step {state.step + 1}", state.config) from error
    with warnings.catch_warnings():
        if not taken:
            for buffer, before in buffers:
                buffer.copy_(before)
            # torch warns of a scheduler that is ahead of the optimizer, as it is meant to be here.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        state.scheduler.step()
    state.step += 1
    return loss, taken


def loss_of(state: TrainingState, images: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of a batch."""
    model = state.model if state.parallel is None else state.parallel
    return nn.functional.cross_entropy(logits_of(model, images, amp=state.config.amp), labels)


@torch.no_grad()
def check_state(state: TrainingState) -> None:
    """Raise unless all numbers of model and optimizer are finite, in all processes.

    A state that overflows under a finite loss could be saved, but not resumed.

    Raises
    ------
    Diverged
        One is not.
    NotFinite
        One is not, and the run is to go back.
    """
    tensors = dict(state.model.state_dict())
    for number, entries in enumerate(state.optimizer.state_dict()["state"].values()):
        tensors |= {f"{name} of parameter {number} of the optimizer": t for name, t in entries.items()}
    tensors = {name: t for name, t in tensors.items() if isinstance(t, Tensor) and t.is_floating_point()}
    finite = {name: torch.isfinite(t).all() for name, t in tensors.items()}
    bad = [name for name, good in finite.items() if not good]
    device = next(state.model.parameters()).device
    if state.processes.mean(torch.tensor(float(bool(bad)), device=device)) > 0:
        found = bad[0] if bad else "what another process trains"
        raise _diverged(
            f"{found} holds NaN or infinity after step {state.step}: training diverged", state.config
        )


def _diverged(what: str, config: TrainConfig) -> Diverged | NotFinite:
    return NotFinite(what) if config.on_nan == "rollback" else Diverged(f"{what}; {advice(config)}")


def check_finite(loss: float, config: TrainConfig, epoch: int, step: int) -> None:
    """Raise Diverged unless the loss is a number."""
    if not math.isfinite(loss):
        raise Diverged(
            f"the loss is {loss} in epoch {epoch}, step {step}: training diverged; {advice(config)}"
        )


def advice(config: TrainConfig) -> str:
    """What may help a run that diverges."""
    return f"try a learning rate below {config.lr:g}"


def _move(state: TrainingState, loss: Tensor) -> bool:
    if state.guard is None:
        state.optimizer.step()
        return True
    return state.guard.step(loss) is StepOutcome.TAKEN
