"""The protocol between optimizers and whoever decides on ranks."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import torch

from tenfold.manifolds import LowRankManifold, Truncation, rank_tuple
from tenfold.untrusted import values as check

__all__ = ["Pending", "RankPolicy", "policy_from_state", "policy_state"]

Ranks = tuple[int, ...]


class Pending(NamedTuple):
    """A parameter whose ranks are to be decided.

    Attributes
    ----------
    manifold : LowRankManifold
        Where it lives now.
    truncation : Truncation
        The spectra of its next value, before truncation.
    """

    manifold: LowRankManifold
    truncation: Truncation


@dataclass(frozen=True, kw_only=True)
class RankPolicy(abc.ABC):
    """When ranks are decided, for all parameters of a group at once, and within which limits.

    A policy says what it wants in :meth:`wanted`; what is common to all policies is done here: the
    schedule, the limits, the rounding to multiples and the hysteresis.

    Parameters
    ----------
    min_rank : int or float
        Ranks never fall below it; a float in (0, 1] is a fraction of the full rank.
    max_rank : int, float or None
        Ranks never exceed it, not even for ``min_rank``; a float in (0, 1] is a fraction of the full rank.
    every : int
        Decide in every ``every``-th step; the steps between keep their ranks and never synchronise.
    start : int
        Number of steps before the first interval begins, in which ranks stay.
    stop : int or None
        Number of steps after which ranks stay fixed.
    multiple_of : int
        Round ranks up to multiples of this number where there are as many singular values (8 suits
        tensor cores).
    hysteresis : float
        Keep a rank as long as the wanted one differs by at most this fraction of it.
    oversampling : int
        Directions to keep in every rank beyond those that would be kept otherwise, except in the last
        decision before ``stop``. A direction that a step has just opened is small, and a truncation in the
        same step removes it again; among these it has the time of an interval to grow. So ranks that have
        fallen too low come back, from badly conditioned starts above all. Directions below 100 times the
        precision of the tensor are not among them.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """

    min_rank: int | float = 1
    max_rank: int | float | None = None
    every: int = 1
    start: int = 0
    stop: int | None = None
    multiple_of: int = 1
    hysteresis: float = 0.0
    oversampling: int = 0

    kinds: ClassVar[dict[str, type[RankPolicy]]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        RankPolicy.kinds[cls.__name__] = cls

    def __post_init__(self) -> None:
        for name in ("every", "start", "stop", "multiple_of", "oversampling"):
            value = getattr(self, name)
            if (value is not None or name != "stop") and type(value) is not int:
                raise TypeError(f"{name} must be an integer, got {value!r}")
        for name, bound in (("min_rank", self.min_rank), ("max_rank", self.max_rank)):
            fits = 0 < bound <= 1 if isinstance(bound, float) else type(bound) is int and bound >= 1
            fits = fits or (bound is None and name == "max_rank")
            if not fits:
                raise ValueError(f"{name} must be an integer >= 1 or a fraction in (0, 1], got {bound}")
        low, high = self.min_rank, self.max_rank
        if high is not None and type(low) is type(high) and low > high:
            raise ValueError(f"min_rank must not exceed max_rank={high}, got {low}")
        for name in ("every", "multiple_of"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("start", "hysteresis", "oversampling"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.stop is not None and self.stop < self.start:
            raise ValueError(f"stop must not come before start={self.start}, got {self.stop}")

    def due(self, step: int) -> bool:
        """Whether step number ``step``, counted from 1, decides on ranks."""
        return self.on_beat(step) and step > self.start and (self.stop is None or step <= self.stop)

    def on_beat(self, step: int) -> bool:
        """Whether step number ``step``, counted from 1, ends an interval, with or without a decision."""
        return (step - self.start) % self.every == 0

    def progress(self, step: int) -> float:
        """How far step number ``step`` is on the way from ``start`` to the last decision, in [0, 1].

        It stays 0 without a ``stop``, and where ``stop`` leaves no decision.
        """
        length = 0 if self.stop is None else (self.stop - self.start) // self.every * self.every
        return min(max((step - self.start) / length, 0.0), 1.0) if length else 0.0

    def spare(self, step: int) -> int:
        """How many directions a step keeps beyond the others: ``oversampling``, and none in the end."""
        return 0 if self.progress(step) >= 1 else self.oversampling

    @abc.abstractmethod
    def wanted(
        self, pending: Sequence[Pending], limits: Sequence[list[tuple[int, int]]], step: int
    ) -> list[Ranks]:
        """The ranks that the policy wants, with the :meth:`spare` ones among them.

        Parameters
        ----------
        pending : sequence of Pending
            The parameters of the group.
        limits : sequence of list of (int, int)
            For each parameter and rank the lowest and highest that are allowed.
        step : int
            Number of the step, counted from 1.

        Returns
        -------
        list of tuple of int
            One rank per spectrum, for each parameter.
        """

    def decide(self, pending: Sequence[Pending], step: int) -> list[Ranks]:
        """The ranks that each parameter takes; see :meth:`wanted` for the arguments."""
        limits = [self._limits(item) for item in pending]
        decided = []
        for item, bounds, ranks in zip(pending, limits, self.wanted(pending, limits, step), strict=True):
            current = rank_tuple(item.manifold.rank)
            settled = []
            for rank, old, (low, high) in zip(ranks, current, bounds, strict=True):
                if abs(rank - old) <= self.hysteresis * old:
                    rank = old
                rank = math.ceil(rank / self.multiple_of) * self.multiple_of
                settled.append(max(low, min(rank, high)))
            decided.append(tuple(settled))
        return decided

    def truncate(
        self, manifold: LowRankManifold, truncation: Truncation, step: int = 1
    ) -> tuple[LowRankManifold, torch.Tensor]:
        """Decide on the ranks of one tensor and carry the decision out.

        Parameters
        ----------
        manifold : LowRankManifold
            Where the parameter lives now.
        truncation : Truncation
            The spectra of its next value.
        step : int
            Number of the step, counted from 1.

        Returns
        -------
        manifold : LowRankManifold
            Where it will live.
        point : torch.Tensor
            Its next value, packed.
        """
        return truncation.to(self.decide([Pending(manifold, truncation)], step)[0])

    def _limits(self, item: Pending) -> list[tuple[int, int]]:
        limits = []
        for full, values in zip(
            rank_tuple(item.manifold.full_rank), item.truncation.singular_values, strict=True
        ):
            available = min(full, values.shape[-1])
            high = available if self.max_rank is None else min(available, _absolute(self.max_rank, full))
            limits.append((min(high, _absolute(self.min_rank, full)), high))
        return limits


def _absolute(bound: int | float, full: int) -> int:
    return math.ceil(bound * full) if isinstance(bound, float) else bound


def policy_state(policy: RankPolicy | None) -> dict[str, Any] | None:
    """A policy as plain data."""
    return None if policy is None else {"policy": type(policy).__name__, **asdict(policy)}


def policy_from_state(state: Any) -> RankPolicy | None:
    """The inverse of :func:`policy_state`; a policy passes unchanged.

    Raises
    ------
    ValueError
        If the kind of policy is not known, or its arguments are not those of one.
    """
    if state is None or isinstance(state, RankPolicy):
        return state
    check.mapping(check.plain)("the saved rank policy", state)
    options = dict(state)
    kind = options.pop("policy", None)
    if kind not in RankPolicy.kinds:
        raise ValueError(
            f"the saved rank policy {check.brief(kind)} is not known; known are {sorted(RankPolicy.kinds)}"
        )
    try:
        return RankPolicy.kinds[kind](**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the saved {kind} is not valid: {error}") from error
