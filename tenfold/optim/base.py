"""What every optimizer on manifolds shares: grouping, retraction, rank changes, all or nothing."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import geoopt
import torch

from tenfold.manifolds import LowRankManifold, is_low_rank, move_
from tenfold.optim.rank_adaptation import RankAdaptation

__all__ = ["RiemannianOptimizer"]

Tensors: TypeAlias = dict[str, torch.Tensor]
Group: TypeAlias = dict[str, Any]


@dataclass
class _Update:
    """What one parameter becomes if the whole step succeeds."""

    parameter: geoopt.ManifoldParameter
    point: torch.Tensor
    state: Tensors = field(default_factory=dict)
    manifold: LowRankManifold | None = None


class RiemannianOptimizer(torch.optim.Optimizer, metaclass=abc.ABCMeta):
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
        Batch parameters on equal manifolds. None means yes, and torch's own default for plain ones.
    rank_adaptation : RankAdaptation or None
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
        rank_adaptation: RankAdaptation | None,
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

    #: Names of the state tensors that are tangent vectors; they are transported.
    tangent_state: tuple[str, ...] = ()

    @abc.abstractmethod
    def _direction(
        self, group: Group, manifold: geoopt.Manifold, x: torch.Tensor, rgrad: torch.Tensor, state: Tensors
    ) -> tuple[torch.Tensor, Tensors]:
        """Direction to move against, and the new state; nothing is changed in place."""

    @abc.abstractmethod
    def _plain_step(self, group: Group, parameters: list[torch.Tensor]) -> None:
        """Move plain parameters in place with torch's own code."""

    # Set-up ----------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its hyperparameters; see :class:`torch.optim.Optimizer`."""
        complete = {**self.defaults, **param_group}
        policy, stabilize = complete["rank_adaptation"], complete["stabilize"]
        if policy is not None and not isinstance(policy, RankAdaptation):
            raise TypeError(f"rank_adaptation must be a RankAdaptation or None, got {policy!r}")
        if stabilize is not None and stabilize < 1:
            raise ValueError(f"stabilize must be a positive number of steps or None, got {stabilize}")
        if complete["damping"] is not None and complete["damping"] < 0:
            raise ValueError(f"damping must not be negative, got {complete['damping']}")
        self._check_group(complete)
        super().add_param_group(param_group)
        self.param_groups[-1].setdefault("step", 0)

    def _check_group(self, group: Group) -> None:
        """Raise ValueError if a hyperparameter is out of range."""

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
        ValueError
            If a gradient is not finite, or a step overflows; the parameter is named, and nothing
            has been changed.
        RuntimeError
            If a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        plain: list[tuple[Group, list[torch.Tensor]]] = []
        updates: list[_Update] = []
        for group in self.param_groups:
            live = [p for p in group["params"] if p.grad is not None]
            if any(p.grad.is_sparse for p in live):
                raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
            flat = [p for p in live if not isinstance(p, geoopt.ManifoldParameter)]
            plain.append((group, flat))
            policy = group["rank_adaptation"]
            adapt = policy is not None and policy.due(group["step"] + 1)
            curved = [p for p in live if isinstance(p, geoopt.ManifoldParameter)]
            if adapt and group["check_finite"]:
                self._require_finite([p.grad for p in curved], [])
            for members in self._batches(group, curved):
                updates += self._updates(group, members, policy if adapt else None)
        if any(group["check_finite"] for group in self.param_groups):
            grads = [p.grad for _, parameters in plain for p in parameters if p.grad is not None]
            self._require_finite(grads, updates)
        for group, parameters in plain:
            if parameters:
                self._plain_step(group, parameters)
            group["step"] += 1
        for update in updates:
            self._commit(update)
        self._stabilize()
        return loss

    def _batches(
        self, group: Group, parameters: list[geoopt.ManifoldParameter]
    ) -> Iterator[list[geoopt.ManifoldParameter]]:
        """Parameters that move together: those on equal low-rank manifolds."""
        batches: dict[Any, list[geoopt.ManifoldParameter]] = {}
        for number, p in enumerate(parameters):
            alone = group["foreach"] is False or not is_low_rank(p) or p.ndim > 1
            has_state = tuple(sorted(self.state[p])) if p in self.state else ()
            key = number if alone else (p.manifold, p.dtype, p.device, has_state)
            batches.setdefault(key, []).append(p)
        yield from batches.values()

    def _updates(
        self, group: Group, members: list[geoopt.ManifoldParameter], policy: RankAdaptation | None
    ) -> Iterable[_Update]:
        manifold = members[0].manifold
        x = _stack([p.detach() for p in members])
        grad = _stack([p.grad for p in members])
        state = {
            name: _stack([self.state[p][name] for p in members]) for name in self.state.get(members[0], ())
        }
        self._check_state(members, state)
        if group.get("maximize"):
            grad = -grad
        low_rank = isinstance(manifold, LowRankManifold)
        decay = group.get("weight_decay", 0)
        if low_rank:
            damping = group["damping"]
            frame = manifold.frame(x) if damping is None else manifold.damped_frame(x, damping)
            options = {"frame": frame}
            rgrad = manifold.egrad2rgrad(x, grad, **options)
            if decay:
                # The decay of the tensor; the point itself is a tangent vector.
                rgrad = rgrad + decay * manifold.radial(x)
        else:
            options = {}
            rgrad = manifold.egrad2rgrad(x, grad.add(x, alpha=decay) if decay else grad)
        direction, state = self._direction(group, manifold, x, rgrad, state)
        step = -group["lr"] * direction
        if low_rank and policy is not None:
            if group["damping"] is not None:
                step = manifold.undamped(x, step, options["frame"])
                for name in self.tangent_state:
                    if name in state:
                        state[name] = manifold.undamped(x, state[name], options["frame"])
            for p, x_p, step_p, state_p in zip(*_split(members, x, step, state), strict=True):
                yield self._adapted(p, policy, x_p, step_p, state_p)
            return
        y, state = self._retract(manifold, x, step, state, options)
        for p, y_p, _, state_p in zip(*_split(members, y, step, state), strict=True):
            yield _Update(p, y_p, state_p)

    def _retract(
        self,
        manifold: geoopt.Manifold,
        x: torch.Tensor,
        step: torch.Tensor,
        state: Tensors,
        options: dict[str, Any],
    ) -> tuple[torch.Tensor, Tensors]:
        """Move, and carry the tangent vectors of the state along."""
        names = [name for name in self.tangent_state if name in state]
        if not names:
            return manifold.retr(x, step, **options), state
        y = x
        for name in names:
            y, state[name] = manifold.retr_transp(x, step, state[name], **options)
        return y, state

    def _adapted(
        self,
        parameter: geoopt.ManifoldParameter,
        policy: RankAdaptation,
        x: torch.Tensor,
        step: torch.Tensor,
        state: Tensors,
    ) -> _Update:
        """The rank-adaptive step of one parameter."""
        if not torch.isfinite(step).all():
            raise ValueError(f"the step of {self._name(parameter)} overflows; nothing was changed")
        old = parameter.manifold
        new, y = policy.truncate(old, old.truncation(x, step))
        for name in self.tangent_state:
            if name in state:
                state[name] = old.transp(x, y, state[name], target=new)
        return _Update(parameter, y, state, new)

    def _commit(self, update: _Update) -> None:
        if update.manifold is None or update.manifold == update.parameter.manifold:
            update.parameter.copy_(update.point)
        else:
            move_(update.parameter, update.manifold, update.point)
        for name, value in update.state.items():
            # A batch is split into copies so that no parameter keeps the others' memory alive.
            self.state[update.parameter][name] = value.clone()

    def _stabilize(self) -> None:
        for group in self.param_groups:
            if not group["stabilize"] or group["step"] % group["stabilize"]:
                continue
            for p in group["params"]:
                if isinstance(p, geoopt.ManifoldParameter) and p in self.state:
                    p.copy_(p.manifold.projx(p))
                    for name in self.tangent_state:
                        if name in self.state[p]:
                            self.state[p][name] = p.manifold.proju(p, self.state[p][name])

    # Refusals --------------------------------------------------------------------------------

    def _require_finite(self, grads: list[torch.Tensor], updates: list[_Update]) -> None:
        """Raise unless everything is finite; one synchronisation."""
        tensors = [*grads, *(u.point for u in updates), *(t for u in updates for t in u.state.values())]
        if not tensors or torch.isfinite(torch.nn.utils.get_total_norm(tensors, float("inf"))):
            return
        for name, parameter in self._named():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                raise ValueError(f"the gradient of {name} holds NaN or infinity; nothing was changed")
        for update in updates:
            if not torch.isfinite(update.point).all():
                name = self._name(update.parameter)
                raise ValueError(f"the step of {name} overflows; nothing was changed")
        raise ValueError("the step overflows the optimizer's state; nothing was changed")

    def _named(self) -> Iterator[tuple[str, torch.Tensor]]:
        for g, group in enumerate(self.param_groups):
            names = group.get("param_names")
            for k, p in enumerate(group["params"]):
                where = f"parameter {names[k]!r}" if names else f"parameter {k} of group {g}"
                on = p.manifold if isinstance(p, geoopt.ManifoldParameter) else f"shape {tuple(p.shape)}"
                yield f"{where} ({on})", p

    def _name(self, parameter: torch.Tensor) -> str:
        return next(name for name, p in self._named() if p is parameter)

    def _check_state(self, members: list[geoopt.ManifoldParameter], state: Tensors) -> None:
        for name in self.tangent_state:
            if name in state and state[name].shape[-1:] != members[0].shape[-1:]:
                raise ValueError(
                    f"{name} has {state[name].shape[-1]} coordinates but the parameter lives on "
                    f"{members[0].manifold} with {members[0].shape[-1]}: load the model's state before "
                    "the optimizer's"
                )

    # State -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data only, so that it loads with ``weights_only=True``."""
        packed = super().state_dict()
        packed["param_groups"] = [
            {**group, "rank_adaptation": _plain_policy(group["rank_adaptation"])}
            for group in packed["param_groups"]
        ]
        return packed

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` gave, also across rank changes.

        Load the model's state first: its layers take the saved ranks, and the optimizer's state
        must fit them.

        Raises
        ------
        ValueError
            If the groups or the state do not fit the parameters; the optimizer is then unchanged.
        """
        groups = [
            {**group, "rank_adaptation": _policy(group.get("rank_adaptation"))}
            for group in state_dict["param_groups"]
        ]
        numbers = [number for group in groups for number in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for number, p in zip(numbers, parameters, strict=False):
            for name in self.tangent_state:
                saved = state_dict["state"].get(number, {}).get(name)
                if saved is not None and saved.shape != p.shape:
                    raise ValueError(
                        f"the saved {name} of parameter {number} has the shape {tuple(saved.shape)}, the "
                        f"parameter {tuple(p.shape)}: load the model's state before the optimizer's"
                    )
        super().load_state_dict({**state_dict, "param_groups": groups})


def _plain_policy(policy: RankAdaptation | None) -> dict[str, Any] | None:
    return None if policy is None else policy.state_dict()


def _policy(plain: Any) -> RankAdaptation | None:
    return RankAdaptation(**plain) if isinstance(plain, dict) else plain


def _stack(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.stack(tensors)


def _split(
    members: list[geoopt.ManifoldParameter], x: torch.Tensor, step: torch.Tensor, state: Tensors
) -> tuple[list[Any], list[torch.Tensor], list[torch.Tensor], list[Tensors]]:
    """Undo :func:`_stack` for every member of a batch."""
    if len(members) == 1:
        return members, [x], [step], [state]
    states = [{name: value[k] for name, value in state.items()} for k in range(len(members))]
    return members, list(x), list(step), states
