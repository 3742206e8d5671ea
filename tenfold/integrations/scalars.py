"""Ranks and compression as numbers to log."""

from __future__ import annotations

from torch import nn

from tenfold.manifolds import rank_tuple
from tenfold.nn import low_rank_parameters

__all__ = ["rank_scalars"]


def rank_scalars(model: nn.Module) -> dict[str, float]:
    """Ranks of every low-rank parameter, and what they save together.

    Parameters
    ----------
    model : torch.nn.Module
        Any module; its low-rank parameters may be declared anywhere in it.

    Returns
    -------
    dict
        ``rank/<parameter>/<k>`` for the ranks of each parameter, and ``compression``, which is
        ``1 - stored / dense`` over all of them. Empty where there are none. Reads no tensor: costs no
        synchronisation.

    Examples
    --------
    >>> import torch, tenfold
    >>> from tenfold.integrations import rank_scalars
    >>> model = torch.nn.Sequential(tenfold.nn.Linear(16, 12, rank=3))
    >>> rank_scalars(model)
    {'rank/0.weight/0': 3.0, 'compression': 0.515625}
    """
    scalars: dict[str, float] = {}
    stored = dense = 0
    for name, parameter in low_rank_parameters(model):
        manifold = parameter.manifold
        scalars.update({f"rank/{name}/{k}": float(r) for k, r in enumerate(rank_tuple(manifold.rank))})
        count = parameter.numel() // manifold.size
        stored, dense = stored + parameter.numel(), dense + count * manifold.dense_size
    if dense:
        scalars["compression"] = 1.0 - stored / dense
    return scalars
