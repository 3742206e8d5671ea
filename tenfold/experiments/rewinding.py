"""Iterative magnitude pruning with rewinding (``prune-imp``): lottery tickets within the steps of one run.

The steps of a run are five rounds of equal length. After round k of the first four the smallest weights are
removed, so that the fraction ``(1 - compression) ** (k / 4)`` is left. Everything else, running statistics
included, goes back to its values after a tenth of the first round, the optimizer forgets its state, and the
learning rate goes on from where it was then, in every round to the end of its schedule (Frankle et al.,
"Linear mode connectivity and the lottery ticket hypothesis", ICML 2020). There each round is as long as a
whole training; here all of them together cost the steps of one run, as every other method does.

The early values are buffers of the network, and so in its checkpoints.
"""

from __future__ import annotations

from tenfold.experiments.methods import schedule_over
from tenfold.experiments.pruning import keep_largest
from tenfold.experiments.rounds import ROUNDS, early_step, keep_early_values, rewind, round_ends
from tenfold.experiments.state import TrainingState


def rewind_on_schedule(state: TrainingState, total_steps: int) -> bool:
    """Do what is due after ``state.step`` of `total_steps` steps: keep the early values, or prune and rewind.

    Returns
    -------
    bool
        Whether masks have changed.
    """
    if state.config.method != "prune-imp":
        return False
    ends, early = round_ends(total_steps), early_step(total_steps)
    if state.step == early:
        keep_early_values(state.model)
    if state.step not in ends[:-1]:
        return False
    finished = ends.index(state.step) + 1
    keep_largest(state.model, state.config, finished / (ROUNDS - 1))
    rewind(state.model)
    state.optimizer.state.clear()
    _rewind_schedule(state, early, ends[finished] - state.step)
    return True


def _rewind_schedule(state: TrainingState, early: int, steps: int) -> None:
    """Let the learning rate be that after `early` steps, with `steps` to come."""
    for group in state.optimizer.param_groups:
        group["lr"] = state.config.lr
        group.pop("initial_lr", None)
    state.scheduler = schedule_over(state.config, state.optimizer, early + steps)
    for _ in range(early):
        state.scheduler.step()
