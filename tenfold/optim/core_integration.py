"""Steps of a core in bases that are augmented and truncated now and then."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from enum import Enum
from typing import Any

import geoopt
import torch
from torch import nn

from tenfold.manifolds import LowRankManifold, TreeManifold, is_low_rank, move_
from tenfold.manifolds.tree_calculus import Frame
from tenfold.manifolds.tree_transport import Bases
from tenfold.optim.agreement import require_company
from tenfold.optim.augmented import Augmented, captured_gradients
from tenfold.optim.autocast import without_autocast
from tenfold.optim.base import RiemannianOptimizer
from tenfold.optim.capture import Capture
from tenfold.optim.checked import Group
from tenfold.optim.master import needs_master
from tenfold.optim.update import Adapting, Batch, State, Update

__all__ = ["CoreIntegration", "Integrator"]

OPEN = "open"
"""Marks the state of a parameter in augmented bases that wait for their truncation."""

_DAMPING = 0.1
"""Of the gradients in core steps: augmented bases begin with singular values of zero."""


class Integrator(str, Enum):
    """How an augmented step of TDLRT gets its gradient."""

    TWO_PASS = "two-pass"
    """The closure is evaluated again at the same weights in the augmented bases (Algorithm 1)."""
    FUSED = "fused"
    """From inputs and output gradients that the modules keep during the one evaluation."""
    PARALLEL = "parallel"
    """New directions get their first-order part only, which needs no further gradient."""


class CoreIntegration(RiemannianOptimizer):
    """Steps of the core in bases that are augmented and truncated now and then.

    The inner optimizer works on tangent vectors, of which the core's part is followed at once and the rest at
    the next augmentation.
    """

    integrator: Integrator
    _augmented: dict[int, Augmented]
    _capture: Capture | None = None

    def _integrate_with(self, integrator: Integrator | str, model: nn.Module | None, core_steps: int) -> None:
        self._core_steps_default = core_steps
        self.integrator = Integrator(integrator)
        if (self.integrator is Integrator.FUSED) != (model is not None):
            raise ValueError(
                f"model goes with the integrator 'fused' and only with it, got {self.integrator.value!r} and "
                f"model={'None' if model is None else type(model).__name__}"
            )
        self._capture = None if model is None else Capture(model)

    def __getstate__(self) -> dict[str, Any]:
        """torch keeps groups and state alone in copies."""
        names = ("integrator", "_core_steps_default", "_capture")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in names}}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for p in group["params"]:
            if is_low_rank(p) and not isinstance(p.manifold, TreeManifold):
                del self.param_groups[-1]
                raise TypeError(f"{type(self).__name__} needs formats with a core, got {p.manifold}")
        group.setdefault("core_steps", self._core_steps_default)

    def _check_hyperparameters(self, complete: Group) -> None:
        super()._check_hyperparameters(complete)
        policy, core_steps = complete["rank_adaptation"], complete.get("core_steps", self._core_steps_default)
        if policy is None:
            raise ValueError(f"{type(self).__name__} needs a rank_adaptation")
        if complete["damping"] is not None:
            raise ValueError(f"{type(self).__name__} has no use for damping")
        if type(core_steps) is not int or not 1 <= core_steps <= policy.every:
            raise ValueError(
                f"core_steps must lie between 1 and the {policy.every} steps of the rank_adaptation's "
                f"interval, got {core_steps}"
            )
        if core_steps > 1 and policy.hysteresis:
            raise ValueError(
                f"hysteresis={policy.hysteresis} would compare with augmented ranks: it needs core_steps=1, "
                f"got {core_steps}"
            )

    # When -------------------------------------------------------------------------------------

    def _decides(self, group: Group, step: int) -> bool:
        """Truncation ends the steps in augmented bases, which a beat begins."""
        beat = step - group["core_steps"] + 1
        return group["rank_adaptation"].due(beat)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient, or none.

        Parameters
        ----------
        closure : callable or None
            Reevaluates the model and returns the loss; the integrator ``"two-pass"`` needs it.

        Returns
        -------
        The closure's first result, or None.

        Raises
        ------
        ValueError
            If the two-pass integrator gets no closure, if nothing was captured for a parameter, or
            if a gradient or step is not finite; nothing has been changed then.
        TypeError
            If a low-rank parameter is in half precision.
        """
        for group in self.param_groups:
            for p in filter(needs_master, group["params"]):
                raise TypeError(
                    f"{type(self).__name__} needs float32 or float64: {self._name(p)} is {p.dtype}"
                )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        elif self.integrator is Integrator.TWO_PASS:
            raise ValueError("the two-pass integrator evaluates the loss again: call step(closure)")
        try:
            parameters = (p for group in self.param_groups for p in group["params"])
            with without_autocast(parameters, closure) as again:
                self._augmented = self._augmentations(again)
            # Not super().step(): torch has put the hooks of a step around those of classes with instances.
            RiemannianOptimizer.step(self)
        finally:
            self._augmented = {}
            if self._capture is not None:
                self._capture.clear()
        return loss

    @torch.no_grad()
    def _augmentations(self, closure: Callable[[], Any] | None) -> dict[int, Augmented]:
        """The parameters whose bases move in this step, in augmented bases, with the gradients there."""
        if self.integrator is Integrator.PARALLEL:
            return {}
        wide: list[Augmented] = []
        for group in self.param_groups:
            if not group["rank_adaptation"].on_beat(group["step"] + 1):
                continue
            live = [p for p in group["params"] if p.grad is not None and is_low_rank(p)]
            require_company(live, self._name)
            self._check_state(live)
            self._require_finite([p.grad for p in live], [], [])
            for p in live:
                wide.append(self._augment(group, p))
        if self.integrator is Integrator.FUSED:
            assert self._capture is not None
            grads = captured_gradients(wide, self._capture, self._name)
        else:
            assert closure is not None
            grads = self._second_evaluation(closure, wide) if wide else []
        for item, grad in zip(wide, grads, strict=True):
            item.core_grad = grad
        return {id(item.parameter): item for item in wide}

    def _augment(self, group: Group, p: geoopt.ManifoldParameter) -> Augmented:
        """Bases augmented by the direction in which the inner optimizer would move them."""
        x, manifold = p.detach(), p.manifold
        frame = manifold.frame(x)
        rgrad = manifold.egrad2rgrad(x, self._downhill(group, p.grad), frame=frame)
        direction, _ = self._inner(group, manifold, x, rgrad, self.state[p])
        return Augmented(p, frame, rgrad, *manifold.augment(x, direction, frame=frame))

    def _second_evaluation(self, closure: Callable[[], Any], wide: list[Augmented]) -> list[torch.Tensor]:
        """Gradients of the augmented cores by the closure, with the parameters back where they were."""
        grads = []
        homes = [(item.parameter, item.parameter.detach().clone()) for item in wide]
        with ExitStack() as restore:
            for (p, x), item in zip(homes, wide, strict=True):
                restore.callback(move_, p, p.manifold, x)
                move_(p, item.manifold, item.point)
            with torch.enable_grad():
                closure()
            for p, _ in homes:
                if p.grad is None:
                    raise ValueError(f"the second evaluation gave {self._name(p)} no gradient")
                grads.append(p.manifold.unpack_tensor(p.grad)[p.manifold.tree.root].clone())
        for p, x in homes:
            p.grad = torch.zeros_like(x)  # it takes part in the step; its gradient is the core's
        return grads

    # What -------------------------------------------------------------------------------------

    def _move(
        self, group: Group, batch: Batch, adapt: bool, conditioning: list[torch.Tensor]
    ) -> list[Update | Adapting]:
        if not isinstance(batch.manifold, LowRankManifold):
            return list(super()._move(group, batch, adapt, conditioning))
        policy, step = group["rank_adaptation"], group["step"] + 1
        if not policy.on_beat(step):
            updates = self._core_steps(group, batch)
            if adapt:
                return [self._closed(update.parameter, update.point, update.state) for update in updates]
            if OPEN in batch.state:
                for update in updates:
                    update.state[OPEN] = 1
            return list(updates)
        if group["check_finite"]:
            self._require_finite([batch.grad], [], [])  # directions that are not finite would be left out
        # Before `start` and after `stop` the bases move on the beat, too, at the ranks they have.
        holds = group["core_steps"] > 1 and policy.due(step)
        moved: list[Update | Adapting] = []
        members = zip(batch.split(batch.x, batch.state), batch.parts(batch.grad), strict=True)
        for (p, x, state), grad in members:
            wide, y, state, frame = self._augmented_step(group, p, x, grad, state, holds)
            if holds:
                moved.append(self._held_open(p, wide, y, state, frame))
                continue
            truncation = wide.truncation(y, frame=frame)
            if adapt:
                moved.append(Adapting(p, truncation, state, wide, y, frame))
            else:
                new, z = truncation.to(p.manifold.rank)
                moved.append(Update(p, z, self._transported(state, wide, y, new, z, frame), new))
        return moved

    def _held_open(
        self,
        p: geoopt.ManifoldParameter,
        wide: TreeManifold,
        y: torch.Tensor,
        state: State,
        frame: Frame | None,
    ) -> Update:
        """The augmented tensor, which waits for its truncation."""
        new, z = wide.feasible(y)
        state = state if z is y else self._transported(state, wide, y, new, z, frame)
        return Update(p, z, state | {OPEN: 1}, new)

    def _closed(self, p: geoopt.ManifoldParameter, y: torch.Tensor, state: State) -> Adapting:
        """The last step in augmented bases, ready for its truncation."""
        state = {name: value for name, value in state.items() if name != OPEN}
        frame = self._frame_to_carry(state, p.manifold, y)
        return Adapting(p, p.manifold.truncation(y, frame=frame), state, p.manifold, y, frame)

    def _frame_to_carry(self, state: State, manifold: TreeManifold, x: torch.Tensor) -> Frame | None:
        """The frame at ``x``, if there is state that needs it."""
        return manifold.frame(x) if self._held((*self.tangent_state, *self.square_state), state) else None

    def _waiting(self, group: Group) -> list[Adapting]:
        """Parameters in augmented bases without a gradient in the step that truncates."""
        open = [p for p in group["params"] if p.grad is None and OPEN in self.state.get(p, {})]
        return [self._closed(p, p.detach(), self.state[p]) for p in open]

    def _core_steps(self, group: Group, batch: Batch) -> list[Update]:
        """Bases stay; the core moves, and the state remembers where the bases would go."""
        manifold, x, grad = batch.manifold, batch.x, self._downhill(group, batch.grad)
        if group.get("momentum", True):
            grad = manifold.egrad2rgrad(x, grad, frame=manifold.damped_frame(x, _DAMPING))
        else:
            grad = manifold.radial(grad)
        direction, state = self._inner(group, manifold, x, grad, batch.state, core_only=True)
        y = x - self._rate(group) * direction
        return [Update(p, y_p, s_p) for p, y_p, s_p in batch.split(y, state)]

    def _inner(
        self,
        group: Group,
        manifold: TreeManifold,
        x: torch.Tensor,
        rgrad: torch.Tensor,
        state: State,
        core_only: bool = False,
    ) -> tuple[torch.Tensor, State]:
        """Direction, or its part along the core, and new state of the inner optimizer, tangent at ``x``."""
        if decay := self._coupled_decay(group):
            rgrad = rgrad.add(manifold.radial(x), alpha=decay)
        direct = self._core_direction if core_only else self._direction
        return direct(group, manifold, x, rgrad, state)

    def _core_direction(
        self, group: Group, manifold: TreeManifold, x: torch.Tensor, rgrad: torch.Tensor, state: State
    ) -> tuple[torch.Tensor, State]:
        """As :meth:`_direction`, with zeros in place of what moves the bases."""
        direction, state = self._direction(group, manifold, x, rgrad, state)
        return manifold.radial(direction), state

    def _augmented_step(
        self,
        group: Group,
        p: geoopt.ManifoldParameter,
        x: torch.Tensor,
        grad: torch.Tensor,
        state: State,
        holds: bool,
    ) -> tuple[TreeManifold, torch.Tensor, State, Frame | None]:
        """The stepped tensor in the augmented bases, the state in them, and perhaps the frame there."""
        home = p.manifold
        if self.integrator is Integrator.PARALLEL:
            frame = home.frame(x)
            rgrad = home.egrad2rgrad(x, self._downhill(group, grad), frame=frame)
            direction, state = self._inner(group, home, x, rgrad, state)
            wide, y = home.extended(x, -self._rate(group) * direction, frame=frame)
            there = self._frame_to_carry(state, wide, y)
            return wide, y, self._transported(state, home, x, wide, y, frame, there), there
        item = self._augmented[id(p)]
        wide, y, frame, core_grad = item.manifold, item.point, item.frame, item.core_grad
        assert core_grad is not None
        # What the augmented bases leave out of the gradient is for the memory of the inner optimizer.
        there = home.augmented_frame(frame, y, wide)
        rgrad = home.transp(x, y, item.rgrad, target=wide, frame=frame, bases=Bases.AUGMENTED)
        blocks = list(wide.unpack_tensor(rgrad))
        blocks[wide.tree.root] = self._downhill(group, core_grad)
        state = self._transported(state, home, x, wide, y, frame, there, bases=Bases.AUGMENTED)
        direction, state = self._inner(group, wide, y, wide.pack_point(*blocks), state, core_only=True)
        z = y - self._rate(group) * direction
        if holds:  # as between the beats, where bases stay and so do coordinates in them
            return wide, z, state, None
        stepped = self._frame_to_carry(state, wide, z)
        state = self._transported(state, wide, y, wide, z, there, stepped, bases=Bases.SAME)
        return wide, z, state, stepped

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients and what was captured with them; see :class:`torch.optim.Optimizer`."""
        super().zero_grad(set_to_none)
        if self._capture is not None:
            self._capture.forget_backward()

    def close(self) -> None:
        """Remove the hooks that the integrator ``"fused"`` put on the model."""
        if self._capture is not None:
            self._capture.close()
