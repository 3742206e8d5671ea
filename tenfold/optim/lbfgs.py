"""Limited-memory BFGS on manifolds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from tenfold.optim.curve import SearchCurve, Tangent, inner
from tenfold.optim.deterministic import LineSearchOptimizer
from tenfold.optim.hyperparameters import check_whole
from tenfold.optim.line_search import Trial, WolfeSearch

__all__ = ["RiemannianLBFGS"]


class RiemannianLBFGS(LineSearchOptimizer):
    r"""Riemannian limited-memory BFGS, for deterministic problems whose gradients are expensive.

    After every step, with the Riemannian gradient ``g``, the direction ``d``, the step length ``a`` and
    vector transport ``T``, the memory takes in the pair

    .. math:: s = a\, T d_k, \qquad y = g_{k+1} - T g_k

    and the older pairs are transported. The direction is :math:`-H g`, where ``H`` is the inverse Hessian
    that the pairs give, by the two-loop recursion started from
    :math:`\langle s, y \rangle / \langle y, y \rangle` of the newest pair:

    .. math::

        H \leftarrow (I - \rho s y^T) H (I - \rho y s^T) + \rho s s^T, \qquad
        \rho = 1 / \langle s, y \rangle .

    Pairs without positive curvature, which a transport that is no isometry may leave, are passed over. A
    direction along which no step can be accepted is replaced by ``-g``. Parameters of all kinds
    move together, as in :class:`RiemannianCG`.

    Parameters
    ----------
    params : iterable
        Parameters or named parameters; a single group.
    max_iter : int
        Iterations in each call of :meth:`step`.
    tolerance_grad : float
        Norm of the Riemannian gradient at which :meth:`step` stops.
    history_size : int
        Number of pairs in memory.
    search : WolfeSearch or None
        The line search; None means ``WolfeSearch(decrease=1e-4, curvature=0.9)``.
    first_step : float or None
        Length of the tangent vector that the first line search tries first; None means the norm of the
        gradient, but at most 1. As soon as there is a pair, a line search tries the whole direction first.

    Attributes
    ----------
    report : LineSearchReport or None
        What happened in the last step.

    Raises
    ------
    ValueError
        If a hyperparameter is out of range, or there are several parameter groups.
    TypeError
        If a parameter is neither float32 nor float64.

    Notes
    -----
    Complexity per low-rank parameter: for every evaluation of the closure three retractions, for every
    iteration one transport for each of the ``2 history_size`` tangent vectors in the state and one more.

    References
    ----------
    Nocedal and Wright, "Numerical Optimization", 2006, algorithm 7.4. Huang, Gallivan and Absil, "A Broyden
    class of quasi-Newton methods for Riemannian optimization", SIAM J. Optim. 2015.

    Examples
    --------
    >>> import geoopt, torch
    >>> from tenfold.manifolds import TensorTrainManifold
    >>> from tenfold.optim import RiemannianLBFGS
    >>> manifold = TensorTrainManifold((6, 5, 4), rank=2)
    >>> target = manifold.to_dense(manifold.origin(dtype=torch.float64, seed=1))
    >>> weight = geoopt.ManifoldParameter(manifold.origin(dtype=torch.float64, seed=2), manifold=manifold)
    >>> optimizer = RiemannianLBFGS([weight], max_iter=100, tolerance_grad=1e-8)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = 0.5 * (manifold.to_dense(weight) - target).square().sum()
    ...     loss.backward()
    ...     return loss
    >>> _ = optimizer.step(closure)
    >>> optimizer.report.outcome
    <Outcome.CONVERGED: 'converged'>
    """

    def __init__(
        self,
        params: Any,
        max_iter: int = 20,
        tolerance_grad: float = 1e-7,
        history_size: int = 10,
        *,
        search: WolfeSearch | None = None,
        first_step: float | None = None,
    ):
        super().__init__(
            params,
            max_iter=max_iter,
            tolerance_grad=tolerance_grad,
            search=WolfeSearch(curvature=0.9) if search is None else search,
            first_step=first_step,
            history_size=history_size,
        )

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        check_whole("history_size", group["history_size"])

    def _saved_names(self, count: int) -> set[str]:
        return {f"{letter}{k}" for k in range(count // 2) for letter in "sy"}

    def _pairs(self, live: Sequence[torch.Tensor]) -> list[tuple[Tangent, Tangent]]:
        """The pairs ``(s, y)``, the oldest first; state that not all parameters have is passed over."""
        count = min((len(self.state[p]) // 2 for p in live), default=0)
        return [
            ([self.state[p][f"s{k}"] for p in live], [self.state[p][f"y{k}"] for p in live])
            for k in range(count)
        ]

    def _direction(self, live: list[torch.Tensor], gradient: Tangent) -> Tangent:
        q = [-g for g in gradient]
        known = []
        for s, y in self._pairs(live):
            sy, yy = inner(live, s, y), inner(live, y, y)
            if sy > 1e-10 * math.sqrt(inner(live, s, s) * yy):
                known.append((s, y, sy, yy))
        weights = []
        for s, y, sy, _ in reversed(known):
            weight = inner(live, s, q) / sy
            q = [a - weight * b for a, b in zip(q, y, strict=True)]
            weights.append(weight)
        if known:
            *_, sy, yy = known[-1]
            q = [sy / yy * a for a in q]
        for (s, y, sy, _), weight in zip(known, reversed(weights), strict=True):
            change = weight - inner(live, y, q) / sy
            q = [a + change * b for a, b in zip(q, s, strict=True)]
        return q

    def _guess(self, slope: float, squared: float, norm: float) -> float:
        remembers = any(self.state[p] for p in self.param_groups[0]["params"] if p in self.state)
        return 1.0 if remembers else super()._guess(slope, squared, norm)

    def _remember(self, curve: SearchCurve, accepted: Trial, old: Tangent, new: Tangent) -> None:
        live, a = curve.parameters, accepted.length
        pairs = self._pairs(live)
        pairs = pairs[max(0, len(pairs) + 1 - self.param_groups[0]["history_size"]) :]
        moved = [(curve.transport(a, s), curve.transport(a, y)) for s, y in pairs]
        step = [a * d for d in curve.transport(a, curve.direction)]
        change = [g - h for g, h in zip(new, curve.transport(a, old), strict=True)]
        moved.append((step, change))
        for number, p in enumerate(live):
            self.state[p] = {
                f"{letter}{k}": pair[which][number]
                for k, pair in enumerate(moved)
                for which, letter in enumerate("sy")
            }
