"""What every optimizer on manifolds shares: retraction, transport, rank changes, all or nothing."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import geoopt
import torch

from tenfold.linalg import NonFiniteError
from tenfold.manifolds import LowRankManifold
from tenfold.optim.agreement import agreed_ranks, check_agreement, require_company
from tenfold.optim.autocast import without_autocast
from tenfold.optim.checked import Group
from tenfold.optim.finite import FiniteOptimizer, magnitude
from tenfold.optim.master import MASTER, needs_master, working_point
from tenfold.optim.rank_policy import RankPolicy
from tenfold.optim.update import Adapting, Batch, State, Update, batches

__all__ = ["RiemannianOptimizer"]


class RiemannianOptimizer(FiniteOptimizer):
    """Base of the optimizers. A subclass says what a step is, in tangent space and for plain tensors.

    A step is computed for all parameters, checked, and only then carried out. Low-rank
    parameters on equal manifolds are stacked and moved in one batch; other geoopt manifolds move one by
    one; everything else is left to ``torch.optim``'s own code.

    Parameters
    ----------
    params : iterable
        Parameters, named parameters or parameter groups, as for :class:`torch.optim.Optimizer`.
    defaults : dict
        Hyperparameters of the subclass.
    foreach : bool or None
        Batch parameters on equal manifolds. None means wherever it saves time (everywhere but for large
        parameters on the CPU), and torch's own default for plain ones.
    rank_adaptation : RankPolicy or None
        How ranks are adapted; None keeps them. May differ between groups.
    stabilize : int or None
        Project points and state back on their manifolds every so many steps.
    check_finite : bool
        Refuse a step with NaN or infinity in it, before anything is changed. Costs one
        synchronisation with the device.
    damping : float or None
        None moves by the exact geometry. A number moves low-rank parameters by matrix products only, in
        a metric damped in the directions of small singular values.
    """

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        *,
        foreach: bool | None,
        rank_adaptation: RankPolicy | None,
        stabilize: int | None,
        check_finite: bool,
        damping: float | None,
    ):
        defaults.update(
            foreach=foreach,
            rank_adaptation=rank_adaptation,
            stabilize=stabilize,
            check_finite=check_finite,
            damping=damping,
        )
        super().__init__(params, defaults)

    # What a subclass defines -----------------------------------------------------------------

    #: Whether directions and new state are linear in the gradient and the old state.
    linear_direction = False
    #: Whether weight decay is part of the direction (AdamW) rather than of the gradient.
    decoupled_decay = False

    @abc.abstractmethod
    def _direction(
        self, group: Group, manifold: geoopt.Manifold, x: torch.Tensor, rgrad: torch.Tensor, state: State
    ) -> tuple[torch.Tensor, State]:
        """Direction to move against, and the new state; nothing is changed in place."""

    @abc.abstractmethod
    def _plain_step(self, group: Group, parameters: list[torch.Tensor]) -> None:
        """Move plain parameters in place with torch's own code."""

    # The step --------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient, or none.

        Parameters
        ----------
        closure : callable or None
            Reevaluates the model and returns the loss.

        Returns
        -------
        The closure's result, or None.

        Raises
        ------
        NonFiniteError
            If a gradient is not finite, or the step of a parameter on a manifold overflows (a ValueError,
            too); the parameter is named, and nothing has been changed.
        RuntimeError
            If a gradient is sparse; if another process has come to other values, after the step.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with without_autocast(p for group in self.param_groups for p in group["params"]):
            self._step_all()
        return loss

    def _step_all(self) -> None:
        """The step, with the gradients that are there."""
        plain: list[tuple[Group, list[torch.Tensor]]] = []
        updates: list[Update] = []
        conditioning: list[torch.Tensor] = []
        for group in self.param_groups:
            live = [p for p in group["params"] if p.grad is not None]
            if any(p.grad.is_sparse for p in live):
                raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
            plain.append((group, [p for p in live if not isinstance(p, geoopt.ManifoldParameter)]))
            curved = [p for p in live if isinstance(p, geoopt.ManifoldParameter)]
            self._check_state(curved)
            adapting: list[Adapting] = []
            policy = group["rank_adaptation"]
            if policy is not None:
                require_company(curved, self._name)
            policy = policy if policy is not None and self._decides(group, group["step"] + 1) else None
            if policy is not None:
                if group["check_finite"]:
                    self._require_finite([p.grad for p in curved], [], [])
                adapting += self._waiting(group)
            # Ranks are decided parameter by parameter.
            foreach = group["foreach"] if policy is None else False
            for batch in batches(curved, self.state, foreach=foreach):
                for moved in self._move(group, batch, policy is not None, conditioning):
                    if isinstance(moved, Adapting):
                        adapting.append(moved)
                    else:
                        updates.append(moved)
            if policy is not None and adapting:
                updates += self._adapt(policy, adapting, group["step"] + 1)
        if any(group["check_finite"] for group in self.param_groups):
            grads = [p.grad for _, parameters in plain for p in parameters if p.grad is not None]
            self._require_finite(grads, updates, conditioning)
        for group, parameters in plain:
            if parameters:
                self._plain_step(group, parameters)
            group["step"] += 1
        for update in updates:
            update.commit(self.state[update.parameter])
        self._stabilize()
        check_agreement([u.parameter for u in updates if u.manifold is not None], self.state)

    def _decides(self, group: Group, step: int) -> bool:
        """Whether ranks are decided in a step."""
        return group["rank_adaptation"].due(step)

    def _waiting(self, group: Group) -> list[Adapting]:
        """Parameters whose ranks are to be decided though they have no gradient."""
        return []

    def _move(
        self, group: Group, batch: Batch, adapt: bool, conditioning: list[torch.Tensor]
    ) -> Sequence[Update | Adapting]:
        """The updates of a batch, or what is needed to decide on its ranks."""
        manifold, x = batch.manifold, batch.x
        grad, decay = self._downhill(group, batch.grad), self._coupled_decay(group)
        if not isinstance(manifold, LowRankManifold):
            rgrad = manifold.egrad2rgrad(x, grad.add(x, alpha=decay) if decay else grad)
            direction, state = self._direction(group, manifold, x, rgrad, batch.state)
            y, state = self._carry(manifold, x, -self._rate(group) * direction, state, {})
            return [Update(p, y_p, s_p) for p, y_p, s_p in batch.split(y, state)]
        damping = group["damping"]
        exact = manifold.frame(x) if damping is None or adapt else None
        known = {} if exact is None else {"frame": exact}
        frame = exact if damping is None else manifold.damped_frame(x, damping, **known)
        estimate = manifold.gradient_conditioning(frame)
        if estimate is not None:
            conditioning.append(estimate)
        direction, state = self._tangent_direction(group, manifold, x, grad, decay, frame, batch.state)
        if not adapt:
            step = -self._rate(group) * direction
            implied = self.tangent_state if damping is not None and self.linear_direction else ()
            if damping is not None:
                y = manifold.retr(x, step, frame=frame)
            else:
                y, state = self._carry(manifold, x, step, state, {"frame": frame})
            return [Update(p, y_p, s_p, implied=implied) for p, y_p, s_p in batch.split(y, state)]
        (parameter,) = batch.members
        if damping is not None:
            isometric = manifold.undamped(x, direction, frame, **known)
            for name in self._held(self.tangent_state, state):
                same = state[name] is direction
                state[name] = isometric if same else manifold.undamped(x, state[name], frame, **known)
            direction = isometric
        step = -self._rate(group) * direction
        # The sum is several times faster than a look at every number, and seldom deceived.
        if group["check_finite"] and not torch.isfinite(magnitude([step])) and not step.isfinite().all():
            raise NonFiniteError(f"the step of {self._name(parameter)} overflows; nothing was changed")
        return [Adapting(parameter, manifold.truncation(x, step, **known), state, manifold, x, exact)]

    @staticmethod
    def _downhill(group: Group, grad: torch.Tensor) -> torch.Tensor:
        """The gradient of what is minimised."""
        return -grad if group.get("maximize") else grad

    @staticmethod
    def _rate(group: Group) -> float | torch.Tensor:
        """The learning rate; a tensor without dimensions, which would broadcast and decide on types."""
        lr = group["lr"]
        return lr.reshape(()) if isinstance(lr, torch.Tensor) else lr

    def _coupled_decay(self, group: Group) -> float:
        """Weight decay that is part of the gradient."""
        return 0.0 if self.decoupled_decay else group.get("weight_decay", 0.0)

    def _tangent_direction(
        self,
        group: Group,
        manifold: LowRankManifold,
        x: torch.Tensor,
        grad: torch.Tensor,
        decay: float,
        frame: Any,
        state: State,
    ) -> tuple[torch.Tensor, State]:
        """Direction and new state in the coordinates of a frame.

        Damped steps turn the bases by the square of the step only, so that a projection carries the state
        from one point to the next, to first order. It waits for the step at the next point, where in linear
        optimizers it is one with that of the gradient.
        """
        damped = group["damping"] is not None
        late = damped and self.linear_direction
        if damped and not late:
            held = self._held(self.tangent_state, state)
            state = state | {name: manifold.proju(x, state[name]) for name in held}
        rgrad = (manifold.ungauged_gradient if late else manifold.egrad2rgrad)(x, grad, frame=frame)
        if decay:
            # The decay of the tensor; the point itself is a tangent vector.
            rgrad = rgrad + decay * manifold.radial(x)
        direction, state = self._direction(group, manifold, x, rgrad, state)
        if not late:
            return direction, state
        projected = manifold.proju(x, direction)
        for name in self._held(self.tangent_state, state):
            state[name] = projected if state[name] is direction else manifold.proju(x, state[name])
        return projected, state

    def _carry(
        self,
        manifold: geoopt.Manifold,
        x: torch.Tensor,
        step: torch.Tensor,
        state: State,
        frame: dict[str, Any],
    ) -> tuple[torch.Tensor, State]:
        """Move, and carry the tangent vectors of the state along."""
        held = self._held(self.tangent_state, state)
        if not held:
            return manifold.retr(x, step, **frame), state
        for name in held:
            y, state[name] = manifold.retr_transp(x, step, state[name], **frame)
        return y, state

    def _adapt(self, policy: RankPolicy, adapting: Sequence[Adapting], step: int) -> Iterable[Update]:
        """Decide on the ranks of all parameters of a group, and carry their state over."""
        decided = agreed_ranks(policy, [a.parameter for a in adapting], [a.pending for a in adapting], step)
        for item, ranks in zip(adapting, decided, strict=True):
            new, y = item.truncation.to(ranks)
            state = self._transported(item.state, item.manifold, item.x, new, y, item.frame)
            yield Update(item.parameter, y, state, new)

    def _transported(
        self,
        state: State,
        old: LowRankManifold,
        x: torch.Tensor,
        new: LowRankManifold,
        y: torch.Tensor,
        frame: Any = None,
        target_frame: Any = None,
        **options: Any,
    ) -> State:
        """The state at ``x`` on one manifold, carried to ``y`` on another; their frames may be known."""
        moved = dict(state)
        tangents = self._held(self.tangent_state, state)
        squares = self._held(self.square_state, state)
        if not tangents and not squares:
            return moved
        frames = {
            "frame": old.frame(x) if frame is None else frame,
            "target_frame": new.frame(y) if target_frame is None else target_frame,
        }
        known = options | {name: value for name, value in frames.items() if value is not None}
        for name in tangents:
            moved[name] = old.transp(x, y, state[name], target=new, **known)
        for name in squares:
            moved[name] = old.transp_squares(x, y, state[name], target=new, **known)
        return moved

    def _stabilize(self) -> None:
        for group in self.param_groups:
            if not group["stabilize"] or group["step"] % group["stabilize"]:
                continue
            for p in group["params"]:
                if isinstance(p, geoopt.ManifoldParameter):
                    state = self.state[p]
                    x = p.manifold.projx(working_point(p, state.get(MASTER)))
                    p.copy_(x)
                    if needs_master(p):
                        state[MASTER] = x
                    for name in self._held(self.tangent_state, state):
                        state[name] = p.manifold.proju(x, state[name])
