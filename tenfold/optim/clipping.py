"""Gradient clipping by the norm that a step has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import geoopt
import torch

from tenfold.distributed.sharded import whole
from tenfold.linalg import vector_norm
from tenfold.optim.autocast import without_autocast
from tenfold.optim.update import batches

__all__ = ["clip_riemannian_norm_"]


@torch.no_grad()
def clip_riemannian_norm_(
    parameters: torch.Tensor | Iterable[torch.Tensor],
    max_norm: float,
    *,
    error_if_nonfinite: bool = False,
) -> torch.Tensor:
    r"""Scale gradients in place so that the Riemannian gradient has at most a given norm.

    .. math:: \|g\|^2 = \sum_p \langle \operatorname{grad}_p f, \operatorname{grad}_p f \rangle_p

    over all parameters: the metric's norm of the Riemannian gradient on manifolds, the Euclidean norm
    for plain parameters. The norm of a packed ``.grad`` itself means nothing: it depends on the gauge and on
    the conditioning of the core. The Riemannian gradient is linear in ``.grad``, so scaling one scales the
    other.

    Parameters
    ----------
    parameters : torch.Tensor or iterable of torch.Tensor
        Parameters; those without a gradient are left out.
    max_norm : float
        The largest norm allowed, positive.
    error_if_nonfinite : bool
        Raise instead of returning a norm that is not finite.

    Returns
    -------
    torch.Tensor
        The norm before clipping, zero-dimensional; no synchronisation with the device.

    Raises
    ------
    ValueError
        If ``max_norm`` is not positive.
    RuntimeError
        If the norm is not finite and ``error_if_nonfinite`` is set; the gradients are then unchanged.

    Notes
    -----
    Complexity: the gradient conversion of a step, batched over parameters on equal manifolds.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be positive, got {max_norm}")
    given = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
    live = [p for p in given if p.grad is not None]
    if not live:
        return torch.zeros(())
    curved = [p for p in live if isinstance(p, geoopt.ManifoldParameter)]
    norms = [
        whole(torch.linalg.vector_norm(p.grad)) for p in live if not isinstance(p, geoopt.ManifoldParameter)
    ]
    with without_autocast(curved):
        for batch in batches(curved, defaultdict(dict), foreach=None):
            manifold = batch.manifold
            rgrad = manifold.egrad2rgrad(batch.x, batch.grad)
            norms.append(vector_norm(manifold.norm(batch.x, rgrad).reshape(-1)))
    total = vector_norm(torch.stack([norm.to(norms[0]) for norm in norms]))
    if error_if_nonfinite and not torch.isfinite(total):
        raise RuntimeError(
            f"the Riemannian norm of the gradients is {total.item()}, so they cannot be clipped"
        )
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for p in live:
        if p.grad is not None:
            p.grad.mul_(factor.to(p.grad.device, p.grad.dtype))
    return total
