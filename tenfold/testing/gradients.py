"""Is the gradient of a user's own function right?"""

from __future__ import annotations

from collections.abc import Callable

import geoopt
import torch

from tenfold.testing.curves import has_order
from tenfold.testing.kinds import subject_of
from tenfold.testing.outcome import CheckResult, NotApplicable, Status
from tenfold.testing.properties.gradient import gradient_curve
from tenfold.testing.properties.tangents import is_tangent
from tenfold.testing.report import Report
from tenfold.testing.sample import Sample

__all__ = ["check_gradient"]


def check_gradient(
    manifold: geoopt.Manifold,
    f: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    *,
    directions: int = 3,
    seed: int = 0,
) -> Report:
    r"""Check the Riemannian gradient of a function along the retraction.

    .. math:: |f(R_x(t u)) - f(x) - t \langle \operatorname{grad} f, u \rangle| = O(t^2)

    where the gradient is ``egrad2rgrad`` of what autograd gives. A function of low-rank points must depend
    on the factors through the tensor alone; that is checked, too.

    Parameters
    ----------
    manifold : geoopt.Manifold
        The manifold.
    f : callable
        Points ``(*batch, *point_shape)`` to one number per member of the batch, twice differentiable.
    x : torch.Tensor
        A point in float64, shape ``(*batch, *point_shape)``, well enough conditioned to move.
    directions : int
        Number of random directions ``u``, at least 1.
    seed : int
        Seed of the directions.

    Returns
    -------
    Report
        Of the checks G2 (the slope), G3 (the gradient is tangent) and G4 (the function does not depend on
        the gauge; not applicable where points have one representation only).

    Raises
    ------
    ValueError
        If ``x`` is not in float64 or not on the manifold, if ``f`` does not return one number per
        member, or ``directions`` is below 1.

    Examples
    --------
    >>> import torch
    >>> from tenfold.manifolds import FixedRankManifold
    >>> from tenfold.testing import check_gradient
    >>> manifold = FixedRankManifold((5, 4), rank=2)
    >>> point = manifold.random(dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> check_gradient(manifold, lambda x: manifold.to_dense(x).sin().sum((-2, -1)), point).ok
    True
    """
    if x.dtype != torch.float64:
        raise ValueError(f"slopes are measured in float64, got a point of {x.dtype}")
    if directions < 1:
        raise ValueError(f"directions must be at least 1, got {directions}")
    manifold.assert_check_point_on_manifold(x)
    axes = manifold.ndim or 0
    batch, shape = tuple(x.shape[: x.ndim - axes]), tuple(x.shape[x.ndim - axes :])
    point = x.detach().clone().requires_grad_()
    value = f(point)
    if value.shape != batch:
        raise ValueError(f"f must return one number per point, shape {batch}, got {tuple(value.shape)}")
    egrad = torch.autograd.grad(value.sum(), point)[0]
    x, value = x.detach(), value.detach()
    rgrad = manifold.egrad2rgrad(x, egrad)
    sample = Sample(subject_of(manifold, shape=shape), batch, torch.float64, seed)
    size = max(float(rgrad.abs().max()), 1e-300)
    tangent = CheckResult.of(
        "G3",
        "the gradient is tangent",
        is_tangent(sample, "grad f is tangent", x, rgrad / size),
        str(manifold),
    )
    space = sample.space_at(x)
    scale = float(torch.linalg.vector_norm(sample.subject.dense(x), dim=-1).min())
    reach = (scale if sample.subject.low_rank is not None else 1.0) / space.condition

    def each(points: torch.Tensor) -> torch.Tensor:
        """``f`` for one batch of the user's own shape at a time."""
        values = torch.stack([f(point) for point in points.reshape(-1, *x.shape)])
        return values.reshape(points.shape[: points.ndim - axes])

    with torch.no_grad():
        curves = [
            gradient_curve(manifold, each, x, sample.tangent(x), rgrad, reach) for _ in range(directions)
        ]
    slope = CheckResult.of(
        "G2",
        "the gradient predicts f along the retraction: the error has slope 2",
        map(has_order, curves),
        str(manifold),
    )
    return Report(str(manifold), (slope, tangent, _gauge(sample, f, x, value)))


def _gauge(
    s: Sample, f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, value: torch.Tensor
) -> CheckResult:
    title = "the function does not depend on the gauge"
    try:
        y = s.subject.other_gauge(x, s.generator)
    except NotApplicable as refusal:
        return CheckResult("G4", title, Status.NOT_APPLICABLE, str(refusal), examples=0)
    there = f(y).detach()
    scale = max(float(value.abs().max()), 1.0)
    same = s.equal(
        "f at the same tensor with other factors",
        there.unsqueeze(-1),
        value.unsqueeze(-1),
        scale=scale,
    )
    return CheckResult.of("G4", title, [same], str(s.manifold))
