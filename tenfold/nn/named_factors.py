"""State dictionaries with a tensor of its own for every factor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import geoopt
import torch
from torch import nn

from tenfold.manifolds import TreeManifold, is_low_rank, rank_tuple
from tenfold.unchanged import unchanged_on_error
from tenfold.untrusted.tensors import check_tensor

__all__ = ["factor_state_dict", "load_factor_state_dict"]


def factor_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """The ``state_dict`` of a model with named factors in the place of packed parameters.

    A parameter ``conv.weight`` on a Tucker manifold becomes ``conv.weight.core``, ``conv.weight.U0`` and so
    on (:attr:`~tenfold.manifolds.LowRankManifold.factor_names`); a matrix of fixed rank has ``S``, ``U`` and
    ``V``, a Tensor Train ``G1``, ``G2``, ... All tensors are contiguous copies, as safetensors wants them.

    Parameters
    ----------
    model : torch.nn.Module
        Any module.

    Returns
    -------
    dict
        Name and tensor.

    Examples
    --------
    >>> import torch, tenfold
    >>> layer = tenfold.nn.Linear(6, 4, rank=2)
    >>> {name: tuple(tensor.shape) for name, tensor in tenfold.nn.factor_state_dict(layer).items()}
    {'bias': (4,), 'weight.S': (2, 2), 'weight.U': (4, 2), 'weight.V': (6, 2)}
    """
    state = {name: value.detach() for name, value in model.state_dict().items()}
    for name, parameter in _low_rank(model):
        manifold, packed = parameter.manifold, state.pop(name)
        state.pop(f"{name}_rank", None)
        for part, factor in zip(manifold.factor_names, manifold.unpack_tensor(packed), strict=True):
            state[f"{name}.{part}"] = factor
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}


def load_factor_state_dict(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load what :func:`factor_state_dict` gave; the model takes the ranks of the factors.

    Parameters
    ----------
    model : torch.nn.Module
        A model of the same layers and formats, at any ranks.
    state : mapping
        Name and tensor.

    Raises
    ------
    ValueError
        If a factor is missing or its shape does not fit; the model is then unchanged.
    RuntimeError
        If other names or shapes do not fit, as from ``load_state_dict``; the model is then unchanged, too.
    """
    packed = dict(state)
    for name, parameter in _low_rank(model):
        manifold = parameter.manifold
        names = [f"{name}.{part}" for part in manifold.factor_names]
        missing = [part for part in names if part not in packed]
        if missing:
            raise ValueError(f"the state has no {missing[0]!r}, a factor of {name!r}")
        factors = [check_tensor(part, packed.pop(part)) for part in names]
        if not isinstance(manifold, TreeManifold) or any(factor.ndim == 0 for factor in factors):
            raise ValueError(f"{name!r} on {manifold} does not fit factors of {[f.shape for f in factors]}")
        try:
            saved = manifold.with_rank([factors[group[0]].shape[-1] for group in manifold.tree.ranks])
            packed[name] = saved.pack_point(*factors)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        packed[f"{name}_rank"] = torch.tensor(rank_tuple(saved.rank))
    with unchanged_on_error(model):
        model.load_state_dict(packed)


def _low_rank(model: nn.Module) -> Iterator[tuple[str, geoopt.ManifoldParameter]]:
    # With repetition: a module that is used twice has two names in the state.
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if is_low_rank(parameter):
            yield name, parameter
