"""Ranks that change between the steps of an optimizer, when its user says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import geoopt
import torch

from tenfold.distributed.registry import reducer_of
from tenfold.manifolds import LowRankManifold, is_low_rank, move_
from tenfold.manifolds.growth import grow
from tenfold.optim.agreement import agreed_generators, agreed_ranks, check_agreement, require_company
from tenfold.optim.rank_policy import Pending, RankPolicy

__all__ = ["ManualRanks"]


class ManualRanks(torch.optim.Optimizer):
    """An optimizer of one parameter group, whose ranks are changed by hand.

    All its state tensors are tangent vectors at their parameters, or ``_change`` is overridden.
    """

    @torch.no_grad()
    def adapt_ranks(self, policy: RankPolicy, step: int = 1) -> None:
        """Truncate all low-rank parameters to the ranks that a policy decides on; the state is transported.

        Parameters
        ----------
        policy : RankPolicy
            Who decides. When it is due is left to the caller.
        step : int
            Number of the step, counted from 1, for policies that depend on it.

        Raises
        ------
        TypeError
            If the policy is none.
        """
        if not isinstance(policy, RankPolicy):
            raise TypeError(f"policy must be a RankPolicy, got {policy!r}")
        parameters = self._low_rank()
        pending = [Pending(p.manifold, p.manifold.truncation(p.detach())) for p in parameters]
        decided = agreed_ranks(policy, parameters, pending, step) if pending else []
        self._change([item.truncation.to(rank) for item, rank in zip(pending, decided, strict=True)])

    @torch.no_grad()
    def grow_ranks(self, rank: Any, *, scale: float = 1e-6, generator: torch.Generator | None = None) -> None:
        """Raise the ranks of every low-rank parameter by small random directions; the state is transported.

        The tensor changes by ``scale`` times its norm. How small that is does not matter to the steps that
        follow (the Riemannian gradient does not see singular values), so small it may be.

        Parameters
        ----------
        rank : int, sequence of int or callable
            The new rank, as for :func:`tenfold.manifolds.growth.grow`; a callable is given the manifold
            of each parameter and returns it.
        scale : float
            Norm of the change relative to that of the tensor.
        generator : torch.Generator or None
            Source of the random directions, in the same state in all processes; None means torch's own, in
            several processes that of process 0.

        Raises
        ------
        ValueError
            If a rank shrinks or cannot be had; nothing is changed then.
        """
        shared = agreed_generators(self._low_rank()) if generator is None else {}
        self._change(
            [
                grow(
                    p.manifold,
                    p.detach(),
                    rank(p.manifold) if callable(rank) else rank,
                    scale=scale,
                    generator=shared.get(reducer_of(p), generator),
                )
                for p in self._low_rank()
            ]
        )

    def _low_rank(self) -> list[geoopt.ManifoldParameter]:
        return [p for p in self.param_groups[0]["params"] if is_low_rank(p)]

    def _change(self, targets: Sequence[tuple[LowRankManifold, torch.Tensor]]) -> None:
        """Put every low-rank parameter on another manifold, and transport its state there."""
        require_company(self._low_rank(), lambda p: f"a parameter on {p.manifold}")  # type: ignore[attr-defined]
        changes = []
        for p, (new, y) in zip(self._low_rank(), targets, strict=True):
            old, x = p.manifold, p.detach()
            held = {name: old.transp(x, y, v, target=new) for name, v in self.state[p].items()}
            changes.append((p, new, y, held))
        for p, new, y, held in changes:
            move_(p, new, y)
            self.state[p] = held
        check_agreement([p for p, *_ in changes], self.state)
