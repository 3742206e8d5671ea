"""Nonlinear conjugate gradients on manifolds."""

from __future__ import annotations

from typing import Any

import torch

from tenfold.optim.curve import SearchCurve, Tangent, inner
from tenfold.optim.deterministic import LineSearchOptimizer
from tenfold.optim.line_search import Trial, WolfeSearch

__all__ = ["RiemannianCG"]


class RiemannianCG(LineSearchOptimizer):
    r"""Riemannian nonlinear conjugate gradients, for deterministic problems such as completion.

    With the Riemannian gradient ``g`` and the direction ``d``, both transported (``T``) from the last point:

    .. math::

        \beta &= \max\Big(0,\;
            \frac{\langle g_k, g_k - T g_{k-1} \rangle}
                 {\langle g_k, T d_{k-1} \rangle - \langle g_{k-1}, d_{k-1} \rangle}\Big) \\
        d_k &= -g_k + \beta\, T d_{k-1} \\
        x_{k+1} &= R_{x_k}(a_k d_k), \qquad a_k \text{ by a line search with strong Wolfe conditions}

    This is the rule of Hestenes and Stiefel, cut off at zero. It equals that of Polak and Ribière where the
    line search is exact, and unlike it keeps consecutive directions conjugate where it is not; the curvature
    condition makes its denominator positive. A direction that does not descend, or along which no step can
    be accepted, is replaced by ``-g``.

    All parameters move together: points on low-rank manifolds (in isometric coordinates, any rank and
    batch), on other geoopt manifolds and plain tensors. The inner product is the sum over them.

    Parameters
    ----------
    params : iterable
        Parameters or named parameters; a single group.
    max_iter : int
        Iterations in each call of :meth:`step`.
    tolerance_grad : float
        Norm of the Riemannian gradient at which :meth:`step` stops.
    search : WolfeSearch or None
        The line search; None means ``WolfeSearch(decrease=1e-4, curvature=0.1)``.
    first_step : float or None
        Length of the tangent vector that the first line search tries first; None means the norm of the
        gradient, but at most 1. Later searches try first what the curvature along the last one suggests.

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
    Complexity per low-rank parameter: for every evaluation of the closure three retractions (one to move and
    two for the slope of the search curve), for every iteration two transports. The state is two tangent
    vectors; no array is larger than the factors.

    References
    ----------
    Hestenes and Stiefel, 1952. Sato, "Riemannian conjugate gradient methods: General framework and specific
    algorithms with convergence analyses", SIAM J. Optim. 2022. Kressner, Steinlechner and Vandereycken,
    "Low-rank tensor completion by Riemannian optimization", BIT 2014.

    Examples
    --------
    >>> import geoopt, torch
    >>> from tenfold.manifolds import TuckerManifold
    >>> from tenfold.optim import RiemannianCG
    >>> manifold = TuckerManifold((6, 5, 4), rank=2)
    >>> target = manifold.to_dense(manifold.origin(dtype=torch.float64, seed=1))
    >>> weight = geoopt.ManifoldParameter(manifold.origin(dtype=torch.float64, seed=2), manifold=manifold)
    >>> optimizer = RiemannianCG([weight], max_iter=100, tolerance_grad=1e-8)
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
        *,
        search: WolfeSearch | None = None,
        first_step: float | None = None,
    ):
        super().__init__(
            params,
            max_iter=max_iter,
            tolerance_grad=tolerance_grad,
            search=WolfeSearch(curvature=0.1) if search is None else search,
            first_step=first_step,
        )

    def _saved_names(self, count: int) -> set[str]:
        return {"direction", "gradient"} if count == 2 else set()

    def _direction(self, live: list[torch.Tensor], gradient: Tangent) -> Tangent:
        states = [self.state[p] for p in live]
        if not all("direction" in state for state in states):
            return [-g for g in gradient]
        ahead = [state["direction"] for state in states]
        change = [g - state["gradient"] for g, state in zip(gradient, states, strict=True)]
        curvature = inner(live, gradient, ahead) - self.param_groups[0]["last_slope"]
        beta = max(0.0, inner(live, gradient, change) / curvature) if curvature > 0 else 0.0
        return [beta * d - g for d, g in zip(ahead, gradient, strict=True)]

    def _remember(self, curve: SearchCurve, accepted: Trial, old: Tangent, new: Tangent) -> None:
        directions = curve.transport(accepted.length, curve.direction)
        gradients = curve.transport(accepted.length, old)
        for p, d, g in zip(curve.parameters, directions, gradients, strict=True):
            self.state[p] = {"direction": d, "gradient": g}
