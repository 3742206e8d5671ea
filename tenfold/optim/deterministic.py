"""Optimizers for deterministic problems: directions with memory, and a line search along the retraction."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch

from tenfold.distributed.registry import reducer_of
from tenfold.linalg import NonFiniteError
from tenfold.optim.agreement import agreed_mean
from tenfold.optim.autocast import without_autocast
from tenfold.optim.curve import SearchCurve, Tangent, inner, riemannian
from tenfold.optim.hyperparameters import check_number, check_whole
from tenfold.optim.line_search import Trial, WolfeSearch
from tenfold.optim.line_search_report import LineSearchReport, Outcome
from tenfold.optim.manual_ranks import ManualRanks
from tenfold.optim.saved_state import checked_state_dict, checking

__all__ = ["LineSearchOptimizer"]

Evaluate: TypeAlias = Callable[[], torch.Tensor]


class LineSearchOptimizer(ManualRanks, metaclass=abc.ABCMeta):
    """Base of the optimizers with a line search. A subclass says what the direction is.

    All parameters, on whatever manifolds, are one point on the product of these; there is one parameter
    group, one direction and one step length.

    Parameters
    ----------
    params : iterable
        Parameters or named parameters; a single group.
    max_iter : int
        Iterations in each call of :meth:`step`.
    tolerance_grad : float
        Norm of the Riemannian gradient at which to stop.
    search : WolfeSearch
        The line search.
    first_step : float or None
        Length of the tangent vector that the first line search tries first; None means the norm of the
        gradient, but at most 1. Later searches try first what the curvature along the last one suggests.
    **further
        Hyperparameters of a subclass.

    Attributes
    ----------
    report : LineSearchReport or None
        What happened in the last step.
    """

    report: LineSearchReport | None = None  # in copies, too, in which torch keeps groups and state alone

    def __init__(
        self,
        params: Any,
        *,
        max_iter: int,
        tolerance_grad: float,
        search: WolfeSearch,
        first_step: float | None,
        **further: Any,
    ):
        if not isinstance(search, WolfeSearch):
            raise TypeError(f"search must be a WolfeSearch, got {search!r}")
        defaults = {
            "max_iter": max_iter,
            "tolerance_grad": tolerance_grad,
            "decrease": search.decrease,
            "curvature": search.curvature,
            "max_doublings": search.max_doublings,
            "first_step": first_step,
            "last_curvature": None,
            "last_slope": None,
            **further,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse a second group: there is one direction and one step length."""
        if getattr(self, "param_groups", None):
            raise ValueError(
                f"{type(self).__name__} takes a single parameter group: one line search moves all"
            )
        self._check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)
        for number, p in enumerate(self.param_groups[0]["params"]):
            if p.dtype not in (torch.float32, torch.float64):
                raise TypeError(f"parameter {number} must be float32 or float64, got {p.dtype}")

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise ValueError if a hyperparameter is out of range."""
        check_whole("max_iter", group["max_iter"])
        check_number("tolerance_grad", group["tolerance_grad"])
        WolfeSearch(group["decrease"], group["curvature"], group["max_doublings"])
        for name in ("first_step", "last_curvature"):
            if group[name] is not None:
                check_number(name, group[name])
                if not group[name]:
                    raise ValueError(f"{name} must be positive or None, got {group[name]}")

    # What a subclass defines -----------------------------------------------------------------

    @abc.abstractmethod
    def _direction(self, live: list[torch.Tensor], gradient: Tangent) -> Tangent:
        """The direction to search, from the state; steepest descent where there is none."""

    @abc.abstractmethod
    def _remember(self, curve: SearchCurve, accepted: Trial, old: Tangent, new: Tangent) -> None:
        """Write the state after an accepted step, given the gradients before and after it."""

    # The step --------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> torch.Tensor:  # type: ignore[override]
        """Do up to ``max_iter`` iterations; the loss never rises (by more than rounding).

        Parameters
        ----------
        closure : callable
            Clears the gradients, evaluates the loss, calls ``backward`` and returns the loss. It must be
            deterministic: the same parameters give the same loss.

        Returns
        -------
        torch.Tensor
            The loss before the first iteration, as :class:`torch.optim.LBFGS` returns it; ``report``
            holds the rest.

        Raises
        ------
        TypeError
            If there is no closure.
        ValueError
            If loss or gradient are not finite at the start, or the state does not fit the parameters;
            parameters and state are then as they were, as after any exception in the closure.
        RuntimeError
            If a gradient is sparse.
        """
        if not callable(closure):
            raise TypeError(f"{type(self).__name__}.step needs a closure that reevaluates the loss")
        with without_autocast(self.param_groups[0]["params"], closure) as evaluated, self._all_or_nothing():
            return self._iterate(evaluated)

    def _iterate(self, closure: Callable[[], Any]) -> torch.Tensor:
        group = self.param_groups[0]
        for p in filter(self.state.get, group["params"]):
            self.state[p] = {name: value.to(p) for name, value in self.state[p].items()}  # after `double()`
        evaluations = 0
        reduced = [p for p in group["params"] if reducer_of(p) is not None][:1]

        def evaluate() -> torch.Tensor:
            nonlocal evaluations
            evaluations += 1
            with torch.enable_grad():
                loss = torch.as_tensor(closure()).detach()
            return agreed_mean(reduced, [loss])[0] if reduced else loss

        first = evaluate()
        live = [p for p in group["params"] if p.grad is not None]
        loss, gradient = float(first), self._gradient(live)
        norm = math.sqrt(inner(live, gradient, gradient))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NonFiniteError(
                f"the step starts at loss {loss} with a gradient of norm {norm}; nothing was changed"
            )
        accepted: list[tuple[Trial, Trial]] = []
        outcome = Outcome.ITERATIONS
        for _ in range(group["max_iter"]):
            if norm <= group["tolerance_grad"]:
                break
            pair = self._search(live, gradient, loss, norm, evaluate)
            if pair is None:
                outcome = Outcome.STALLED
                break
            start, trial, gradient = pair
            accepted.append((start, trial))
            loss, norm = trial.loss, math.sqrt(inner(live, gradient, gradient))
            if not trial.loss < start.loss:
                outcome = Outcome.STALLED
                break
        if norm <= group["tolerance_grad"]:
            outcome = Outcome.CONVERGED
        self.report = LineSearchReport(outcome, loss, norm, tuple(accepted), evaluations)
        return first

    def _search(
        self, live: list[torch.Tensor], gradient: Tangent, loss: float, norm: float, evaluate: Evaluate
    ) -> tuple[Trial, Trial, Tangent] | None:
        """One iteration: along the direction, or, where that leads nowhere, along the gradient."""
        steepest = [-g for g in gradient]
        direction = self._direction(live, gradient)
        for attempt in (direction, steepest):
            slope = inner(live, gradient, attempt)
            if slope < 0:
                found = self._along(live, attempt, gradient, Trial(0.0, loss, slope), norm, evaluate)
                if found is not None:
                    return found
        return None

    def _along(
        self,
        live: list[torch.Tensor],
        direction: Tangent,
        gradient: Tangent,
        start: Trial,
        norm: float,
        evaluate: Evaluate,
    ) -> tuple[Trial, Trial, Tangent] | None:
        """Search along one direction; where nothing can be accepted the parameters stay."""
        group = self.param_groups[0]
        search = WolfeSearch(group["decrease"], group["curvature"], group["max_doublings"])
        rounding = 10 * max(torch.finfo(p.dtype).eps for p in live)
        squared = inner(live, direction, direction)
        guess = self._guess(start.slope, squared, norm)
        curve = SearchCurve(live, direction)
        latest: tuple[float, Tangent] | None = None

        def phi(length: float) -> Trial:
            nonlocal latest
            curve.move_to(length)
            loss = float(evaluate())
            there = self._gradient(live)
            slope = curve.slope(length, there)
            if not (math.isfinite(loss) and math.isfinite(slope)):
                latest = None  # the parameters are here now, wherever the last finite trial was
                return Trial(length, math.inf, math.inf)
            latest = (length, there)
            return Trial(length, loss, slope)

        trial = search(phi, start, guess, rounding)
        if trial is None:
            curve.back()
            return None
        if latest is None or latest[0] != trial.length:
            phi(trial.length)
        assert latest is not None
        self._remember(curve, trial, gradient, latest[1])
        group["last_slope"] = start.slope
        curvature = (trial.slope - start.slope) / (trial.length * squared)
        group["last_curvature"] = curvature if curvature > 0 else group["last_curvature"]
        return start, trial, latest[1]

    def _guess(self, slope: float, squared: float, norm: float) -> float:
        """Length to try first: by slope and squared norm of the direction, and the norm of the gradient."""
        group = self.param_groups[0]
        curvature = group["last_curvature"]
        if curvature is not None and curvature * squared > 0:  # it may underflow
            guess = float(-slope / (curvature * squared))
            if math.isfinite(guess):
                return guess
        first = min(1.0, norm) if group["first_step"] is None else group["first_step"]
        return float(first / math.sqrt(squared))

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` gave, also across rank changes; load the model's state first.

        Raises
        ------
        ValueError
            If groups or state do not fit the parameters, or a hyperparameter is not one; the optimizer is
            then unchanged.
        """
        with checking(self, state_dict, self._checked):
            super().load_state_dict(state_dict)

    def _checked(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """A state that fits."""
        state_dict = checked_state_dict(self, state_dict)
        (group,) = state_dict["param_groups"]
        self._check_group(group)
        if group["last_slope"] is None and any(state_dict["state"].values()):
            raise ValueError("the state has directions, but no last_slope")
        for number, saved in state_dict["state"].items():
            odd = sorted(name for name in saved if name not in self._saved_names(len(saved)))
            if odd:
                raise ValueError(f"the state of parameter {number} has an unknown {odd[0]!r}")
            if not all(isinstance(value, torch.Tensor) for value in saved.values()):
                raise ValueError(f"the state of parameter {number} holds something other than tensors")
        return state_dict

    @abc.abstractmethod
    def _saved_names(self, count: int) -> set[str]:
        """Names of the tensors in the state of a parameter that has so many."""

    @staticmethod
    def _gradient(live: list[torch.Tensor]) -> Tangent:
        for number, p in enumerate(live):
            if p.grad is not None and p.grad.is_sparse:
                raise RuntimeError(f"the gradient of parameter {number} is sparse, which is not supported")
        return riemannian(live)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        group = self.param_groups[0]
        points = [p.detach().clone() for p in group["params"]]
        states = {p: dict(self.state[p]) for p in group["params"] if p in self.state}
        kept = {name: value for name, value in group.items() if name != "params"}
        try:
            yield
        except BaseException:
            for p, x in zip(group["params"], points, strict=True):
                p.copy_(x)
            self.state.clear()
            self.state.update(states)
            group.update(kept)
            raise
