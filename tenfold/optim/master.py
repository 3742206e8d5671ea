"""Float32 master copies of low-rank parameters that are kept in half precision."""

from __future__ import annotations

import geoopt
import torch

from tenfold.manifolds import is_low_rank

__all__ = ["MASTER", "needs_master", "working_point"]

MASTER = "master"
"""Name of the master copy in the state of a parameter."""


def needs_master(parameter: torch.Tensor) -> bool:
    """Whether a parameter is low-rank and of a type in which decompositions do not exist."""
    return is_low_rank(parameter) and parameter.dtype in (torch.bfloat16, torch.float16)


@torch.no_grad()
def working_point(parameter: geoopt.ManifoldParameter, master: torch.Tensor | None) -> torch.Tensor:
    """The point that a step starts from.

    Parameters
    ----------
    parameter : geoopt.ManifoldParameter
        The parameter, shape ``(*batch, size)``.
    master : torch.Tensor or None
        Its master copy, if there is one.

    Returns
    -------
    torch.Tensor
        The parameter itself, detached, in float32 and float64. In half precision the master copy, in which
        entries that no longer round to those of the parameter are replaced, so that weights
        which were loaded or changed by hand are not lost; without a copy of that size the
        projection of the rounded factors on the manifold. Shape ``(*batch, size)``.
    """
    if not needs_master(parameter):
        return parameter.detach()
    rounded = parameter.detach().float()
    if master is None or master.shape != parameter.shape:
        return parameter.manifold.projx(rounded)
    return torch.where(master.to(parameter.dtype) == parameter, master, rounded)
