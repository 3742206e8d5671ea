"""What becomes of a step that holds NaN or infinity: an error, nothing, or a return to a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import torch

from tenfold.distributed.sharded import whole
from tenfold.linalg import NonFiniteError
from tenfold.optim.base import RiemannianOptimizer
from tenfold.optim.deterministic import LineSearchOptimizer
from tenfold.optim.snapshot import Snapshot

__all__ = ["OnNonFinite", "StepGuard", "StepOutcome"]

_COUNTERS = ("taken", "skipped", "in_a_row", "rollbacks")


class OnNonFinite(str, Enum):
    """What to do when a loss, a gradient or a step is not finite."""

    RAISE = "raise"
    """Raise :class:`~tenfold.linalg.NonFiniteError`, with nothing changed."""
    SKIP = "skip"
    """Leave the step out and count it."""
    ROLLBACK = "rollback"
    """Go back to a snapshot of model and optimizer."""


class StepOutcome(str, Enum):
    """What became of a step."""

    TAKEN = "taken"
    """The parameters have moved."""
    SKIPPED = "skipped"
    """It was not finite and has been left out."""
    ROLLED_BACK = "rolled-back"
    """It was not finite; all that is kept is as in the snapshot, so that no step of a scheduler follows."""
    UNSCALED = "unscaled"
    """The ``GradScaler`` found its scale too large, left the step out and will lower the scale."""


class StepGuard:
    """Takes the steps of an optimizer and deals with those that are not finite.

    Not finite is a step whose loss or a gradient holds NaN or infinity, that overflows, or in which a
    decomposition fails (``torch.linalg.LinAlgError``). It changes nothing; what happens then is up to the
    policy. Works with every optimizer of the library, whose own check is used, and with those of
    ``torch.optim``, of which loss and gradients are checked, but not whether the step overflows.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Takes the steps.
    policy : OnNonFinite or str
        ``"raise"``, ``"skip"`` or ``"rollback"``.
    max_in_a_row : int or None
        For ``"skip"``: so many steps in a row may be left out, the next raises. None means 10.
    max_skipped : int or None
        For ``"skip"``: so many steps may be left out in all. None means 1000.
    keep : sequence
        For ``"rollback"``: what goes back beside the optimizer, objects with ``state_dict`` and
        ``load_state_dict``: the model, then schedulers and the like. Snapshots are copies in memory,
        the first of which is taken here.
    every : int or None
        For ``keep``: a snapshot is taken whenever so many steps have been taken, of modules and the state of
        optimizers at once, of groups, averages and the rest when the next step begins, so that a step of a
        scheduler or an update of an average between is in it, a change of ranks is not. None means 100.
    rollback : callable or None
        For ``"rollback"``, instead of `keep`: called without arguments to bring everything back.
    max_rollbacks : int or None
        For ``"rollback"``: so many times in all, the next raises. None means 10.

    Attributes
    ----------
    taken, skipped, in_a_row, rollbacks : int
        Steps taken and left out, left out since the last one taken, and returns to a snapshot; they are in
        the ``state_dict``.
    loss : Any
        What the closure of the last step returned first; None without a closure.
    error : Exception or None
        Why the last step was refused; None if it was not.

    Raises
    ------
    ValueError
        If an argument is out of range or has no effect on the policy.

    Notes
    -----
    What a forward pass changes, such as running statistics, is not the optimizer's: after a skipped step it
    stays changed.

    Complexity: one look at the loss in every step, which waits for the device, beside the check of the
    optimizer; a snapshot copies all of `keep` and the optimizer's state. In a training by several processes
    all must decide alike: hand over a loss that they have averaged.

    Examples
    --------
    >>> import torch
    >>> from tenfold.optim import StepGuard, StepOutcome
    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> guard = StepGuard(torch.optim.SGD([weight], lr=0.1), "skip")
    >>> for factor in (1.0, float("nan")):
    ...     guard.optimizer.zero_grad()
    ...     loss = factor * weight.square().sum()
    ...     loss.backward()
    ...     print(guard.step(loss).value, weight.isfinite().all().item())
    taken True
    skipped True
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        policy: OnNonFinite | str = OnNonFinite.RAISE,
        *,
        max_in_a_row: int | None = None,
        max_skipped: int | None = None,
        keep: Sequence[Any] = (),
        every: int | None = None,
        rollback: Callable[[], Any] | None = None,
        max_rollbacks: int | None = None,
    ):
        self.optimizer = optimizer
        self.policy = OnNonFinite(policy)
        for name, value, owner in (
            ("max_in_a_row", max_in_a_row, OnNonFinite.SKIP),
            ("max_skipped", max_skipped, OnNonFinite.SKIP),
            ("keep", keep or None, OnNonFinite.ROLLBACK),
            ("every", every, OnNonFinite.ROLLBACK),
            ("rollback", rollback, OnNonFinite.ROLLBACK),
            ("max_rollbacks", max_rollbacks, OnNonFinite.ROLLBACK),
        ):
            if value is not None and self.policy is not owner:
                raise ValueError(f"{name} has no effect on the policy {self.policy.value!r}")
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.policy is OnNonFinite.ROLLBACK and bool(keep) == (rollback is not None):
            raise ValueError("the policy 'rollback' needs either keep, as in keep=(model,), or rollback")
        if every is not None and rollback is not None:
            raise ValueError("every has no effect with rollback, which brings its own snapshots")
        self.max_in_a_row = 10 if max_in_a_row is None else max_in_a_row
        self.max_skipped = 1000 if max_skipped is None else max_skipped
        self.max_rollbacks = 10 if max_rollbacks is None else max_rollbacks
        self.every = 100 if every is None else every
        self.taken = self.skipped = self.in_a_row = self.rollbacks = 0
        self.loss: Any = None
        self.error: Exception | None = None
        self._rollback, self._kept = rollback, (*keep, optimizer) if keep else ()
        self._snapshot, self._half_taken = Snapshot(self._kept), False

    def step(
        self,
        loss: torch.Tensor | float | None = None,
        *,
        closure: Callable[[], Any] | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> StepOutcome:
        """Take a step if it is finite, in the place of ``optimizer.step()``.

        Parameters
        ----------
        loss : Tensor, float or None
            The loss, after its ``backward``; None checks gradients and step alone.
        closure : callable or None
            Instead of `loss`: reevaluates the model and returns the loss.
        scaler : torch.amp.GradScaler or None
            Takes the step, in the place of ``scaler.step(optimizer)``; call ``scaler.update()`` afterwards.
            Steps that it leaves out because its scale is too large are its own business and not counted.

        Returns
        -------
        StepOutcome
            What became of the step. If it was left out its gradients have been dropped.

        Raises
        ------
        NonFiniteError
            The step is not finite, and the policy is ``"raise"`` or one of its limits is reached.
        ValueError
            If `closure` comes together with one of the others.
        """
        if closure is not None and not (loss is None and scaler is None):
            raise ValueError("a closure goes alone: it returns the loss, and a GradScaler takes none")
        self.loss = self.error = None
        if self._half_taken:
            self._snapshot.renew_schedules()
            self._half_taken = False
        try:
            if loss is not None:
                self._require_finite_loss(loss, scaler)
            moved = self._take(closure, scaler)
        except (NonFiniteError, torch.linalg.LinAlgError) as error:
            return self._refused(error)
        if not moved:
            return StepOutcome.UNSCALED
        self.taken += 1
        self.in_a_row = 0
        if self._kept and self.taken % self.every == 0:
            self._snapshot = Snapshot(self._kept)  # now, before another forward pass changes statistics
            self._half_taken = True
        return StepOutcome.TAKEN

    def _take(self, closure: Callable[[], Any] | None, scaler: torch.amp.GradScaler | None) -> bool:
        """Let optimizer or scaler take the step; whether it was taken."""
        if scaler is not None:
            stepped: list[bool] = []
            handle = self.optimizer.register_step_post_hook(lambda *_: stepped.append(True))
            try:
                scaler.step(self.optimizer)
            finally:
                handle.remove()
            return bool(stepped)
        if closure is not None:
            self.optimizer.step(self._watched(closure))
            return True
        self._require_finite_gradients()
        self.optimizer.step()
        return True

    def _watched(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure with a check of its first evaluation; a line search may try points of infinite loss."""
        first = True

        def evaluate() -> Any:
            nonlocal first
            loss = closure()
            if first:
                first, self.loss = False, loss
                if isinstance(loss, torch.Tensor | float):
                    self._require_finite_loss(loss, None)
                self._require_finite_gradients()
            return loss

        return evaluate

    # Checks ----------------------------------------------------------------------------------

    def _require_finite_loss(self, loss: torch.Tensor | float, scaler: torch.amp.GradScaler | None) -> None:
        value = torch.as_tensor(loss).detach()
        if torch.isfinite(value).all():
            return
        if scaler is not None:
            try:
                scaler.unscale_(self.optimizer)  # update() wants to have seen the gradients
            except RuntimeError as error:
                if "already been called" not in str(error):
                    raise
        shown = value.item() if value.numel() == 1 else "not finite"
        raise NonFiniteError(f"the loss is {shown}; nothing was changed")

    def _require_finite_gradients(self) -> None:
        """Of an optimizer that does not look itself; one synchronisation."""
        if isinstance(self.optimizer, LineSearchOptimizer):
            return
        groups = self.optimizer.param_groups
        if isinstance(self.optimizer, RiemannianOptimizer) and all(g["check_finite"] for g in groups):
            return
        finite = [
            whole(torch.isfinite(p.grad.coalesce().values() if p.grad.is_sparse else p.grad).all())
            for group in groups
            for p in group["params"]
            if p.grad is not None
        ]
        if finite and not torch.stack([one.to(finite[0].device) for one in finite]).all():
            raise NonFiniteError(
                f"{sum(not one for one in finite)} of {len(finite)} gradients hold NaN or infinity; "
                "nothing was changed"
            )

    # Policies --------------------------------------------------------------------------------

    def _refused(self, error: Exception) -> StepOutcome:
        self.error = error
        if self.policy is OnNonFinite.RAISE:
            if isinstance(error, NonFiniteError):
                raise error
            raise NonFiniteError(f"{error}; nothing was changed") from error
        self.optimizer.zero_grad()
        if self.policy is OnNonFinite.SKIP:
            for name in ("in_a_row", "skipped"):
                limit = getattr(self, f"max_{name}")
                if getattr(self, name) >= limit:
                    raise NonFiniteError(f"{error}; {limit} steps were skipped (max_{name})") from error
            self.skipped += 1
            self.in_a_row += 1
            return StepOutcome.SKIPPED
        if self.rollbacks >= self.max_rollbacks:
            raise NonFiniteError(f"{error}; {self.rollbacks} rollbacks (max_rollbacks)") from error
        self.rollbacks += 1
        if self._rollback is not None:
            self._rollback()
        else:
            self._snapshot.restore()
        return StepOutcome.ROLLED_BACK

    # State -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, int]:
        """The counters.

        Returns
        -------
        dict of str to int
            ``taken``, ``skipped``, ``in_a_row`` and ``rollbacks``.
        """
        return {name: getattr(self, name) for name in _COUNTERS}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take what :meth:`state_dict` gave; load model and optimizer before, which are the new snapshot.

        Parameters
        ----------
        state_dict : dict of str to int
            The counters.

        Raises
        ------
        ValueError
            If a counter is missing or unknown.
        """
        if set(state_dict) != set(_COUNTERS):
            raise ValueError(f"a StepGuard has the counters {list(_COUNTERS)}, not {sorted(state_dict)}")
        for name in _COUNTERS:
            setattr(self, name, state_dict[name])
        self._snapshot, self._half_taken = Snapshot(self._kept), False
