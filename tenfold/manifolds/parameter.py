"""Parameters that live on low-rank manifolds, and how they change their rank."""

from __future__ import annotations

from typing import TypeGuard

import geoopt
import torch

from tenfold.manifolds.base import LowRankManifold

__all__ = ["is_low_rank", "move_"]


def is_low_rank(parameter: object) -> TypeGuard[geoopt.ManifoldParameter]:
    """Whether a parameter lives on a :class:`LowRankManifold`.

    Parameters
    ----------
    parameter : object
        Anything.

    Returns
    -------
    bool
        True for a ``geoopt.ManifoldParameter`` whose manifold is a low-rank one.
    """
    return isinstance(parameter, geoopt.ManifoldParameter) and isinstance(parameter.manifold, LowRankManifold)


@torch.no_grad()
def move_(parameter: geoopt.ManifoldParameter, manifold: LowRankManifold, point: torch.Tensor) -> None:
    """Put a parameter on another manifold, in place: the object stays, its length may change.

    The gradient, which belongs to the old rank, is dropped. Whoever holds state for the parameter
    (an optimizer) transports it.

    Parameters
    ----------
    parameter : geoopt.ManifoldParameter
        The parameter, shape ``(*batch, old size)``.
    manifold : LowRankManifold
        Where it will live.
    point : torch.Tensor
        Its new value, shape ``(*batch, manifold.size)``, of the parameter's dtype and device.

    Raises
    ------
    ValueError
        If the point does not fit the manifold, or differs in dtype, device or batch; the parameter is then
        as it was.
    """
    manifold.assert_check_point(point)
    if (point.dtype, point.device) != (parameter.dtype, parameter.device):
        raise ValueError(
            f"a parameter of {parameter.dtype} on {parameter.device} cannot take a point of "
            f"{point.dtype} on {point.device}"
        )
    if point.shape[:-1] != parameter.shape[:-1]:
        raise ValueError(
            f"a parameter of shape {tuple(parameter.shape)} cannot take a point of shape {tuple(point.shape)}"
        )
    parameter.grad = None
    if point.shape == parameter.shape:
        parameter.copy_(point)
    else:
        # Autograd keeps the gradient accumulator of the old length alive as long as an old graph
        # is. A change of dtype makes it forget that accumulator, a change of length alone does not.
        other = torch.float32 if parameter.dtype == torch.float64 else torch.float64
        parameter.data = torch.empty(0, dtype=other, device=parameter.device)
        parameter.data = point.detach().clone().contiguous()
    parameter.manifold = manifold
