"""O: what the first step of an optimizer does."""

from __future__ import annotations

from collections.abc import Callable

import geoopt
import torch

from tenfold.testing.kinds import subject_of
from tenfold.testing.outcome import CheckResult, Measured, NotApplicable, Status
from tenfold.testing.properties.gradient import riemannian, smooth_loss
from tenfold.testing.sample import Sample

__all__ = ["check_first_step"]

_LR = 1e-6
_TITLE = "the first step with momentum is -lr (1 - dampening) grad f"


def check_first_step(
    optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer],
    manifold: geoopt.Manifold,
    *,
    shape: tuple[int, ...] | None = None,
    seed: int = 0,
) -> CheckResult:
    """Check O1: an optimizer with momentum starts along the Riemannian gradient.

    A buffer that is seeded with the autograd gradient of a packed point, which is no tangent vector,
    sends the first steps somewhere else.

    Parameters
    ----------
    optimizer : callable
        A list with one ``geoopt.ManifoldParameter`` to an optimizer of it: stochastic gradient descent,
        with or without momentum, without weight decay. Its learning rate is lowered to 1e-6, where
        retractions are straight lines.
    manifold : geoopt.Manifold
        Where the parameter lives.
    shape : tuple of int or None
        As for :func:`~tenfold.testing.check_manifold`.
    seed : int
        Seed of the point and the loss.

    Returns
    -------
    CheckResult
        Failed with the length and the direction of the step; not applicable to optimizers whose first
        step is defined otherwise (adaptive ones, Nesterov's).

    Notes
    -----
    With dampening, torch takes the first step undamped; both conventions pass.
    """
    try:
        measured = _first_step(optimizer, Sample(subject_of(manifold, shape=shape), seed=seed))
    except NotApplicable as refusal:
        return CheckResult("O1", _TITLE, Status.NOT_APPLICABLE, str(refusal), examples=0)
    return CheckResult.of("O1", _TITLE, [measured], str(manifold))


def _first_step(
    optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer], s: Sample
) -> Measured:
    parameter = geoopt.ManifoldParameter(s.x.clone(), manifold=s.manifold)
    steps = optimizer([parameter])
    scales = {1.0}
    for group in steps.param_groups:
        for name in ("betas", "nesterov", "weight_decay"):
            if group.get(name):
                raise NotApplicable(f"the optimizer has {name}={group[name]}")
        scales.add(1.0 - group.get("dampening", 0.0))
        group["lr"] = _LR
    loss = smooth_loss(s)
    start = s.subject.dense(s.x).detach()
    want = -s.subject.tangent(s.x, riemannian(s, s.x, loss)[1])
    loss(s.subject.dense(parameter)).sum().backward()
    steps.step()
    step = (s.subject.dense(parameter.detach()) - start) / _LR
    error = min(float((step - scale * want).norm() / (scale * want).norm()) for scale in scales if scale > 0)
    ratio = float(step.norm() / want.norm())
    cosine = float(torch.nn.functional.cosine_similarity(step, want, dim=-1))
    # The step bends by lr times the curvature, the difference of two tensors loses eps / lr.
    bound = 100 * _LR * s.space.condition**2 + torch.finfo(torch.float64).eps / _LR * 100
    return Measured(
        f"the step has {ratio:.3g} times the length of -lr grad f, cosine {cosine:.3f}", error, bound
    )
