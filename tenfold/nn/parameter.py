"""Declaring manifold parameters in any module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import geoopt
import torch
from torch import nn

from tenfold.manifolds import LowRankManifold, is_low_rank, move_, rank_tuple
from tenfold.untrusted.tensors import check_tensor

__all__ = ["declare", "low_rank_parameters"]

_RANK = "_rank"

_DECLARED = "_on_manifolds"
"""Where a module remembers its declared parameters."""


def declare(
    module: nn.Module,
    name: str,
    manifold: LowRankManifold,
    point: torch.Tensor | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> geoopt.ManifoldParameter:
    """Give a module a parameter on a low-rank manifold.

    The module's ``state_dict`` then carries the rank beside the packed point, as ``<name>_rank``, and
    ``load_state_dict`` takes the saved rank.

    Parameters
    ----------
    module : torch.nn.Module
        Any module, usually ``self`` inside its ``__init__``.
    name : str
        Name of the attribute.
    manifold : LowRankManifold
        Where the parameter lives at the start.
    point : torch.Tensor or None
        Initial value, shape ``(*batch, manifold.size)``; None draws a random point.
    device, dtype
        Where and in which type a random point is drawn.

    Returns
    -------
    geoopt.ManifoldParameter
        The parameter, registered with the module.

    Raises
    ------
    ValueError
        If the point does not fit the manifold.

    Examples
    --------
    >>> import torch, tenfold
    >>> from tenfold.manifolds import TensorTrainManifold
    >>> class Bilinear(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         tenfold.nn.declare(self, "weight", TensorTrainManifold((5, 6, 7), rank=2))
    ...     def forward(self, a, b):
    ...         first, second, third = self.weight.unpack_tensor()
    ...         return torch.einsum("ip,bi,pjq,bj,qk->bk", first, a, second, b, third)
    >>> Bilinear()(torch.randn(3, 5), torch.randn(3, 6)).shape
    torch.Size([3, 7])
    """
    if point is None and device is not None and torch.device(device).type == "meta":
        point = torch.empty(manifold.size, device=device, dtype=dtype)  # to draw nothing takes its time too
    elif point is None:
        point = manifold.random(device=device, dtype=dtype)
    parameter = geoopt.ManifoldParameter(point, manifold=manifold)
    module.register_parameter(name, parameter)
    module.__dict__.setdefault(_DECLARED, {})[name] = parameter
    if _save_ranks not in module._state_dict_hooks.values():
        module.register_state_dict_post_hook(_save_ranks)
        module.register_load_state_dict_pre_hook(_load_ranks)
    return parameter


def low_rank_parameters(module: nn.Module) -> Iterator[tuple[str, geoopt.ManifoldParameter]]:
    """Names and parameters on low-rank manifolds, of a module and all below it.

    Parameters
    ----------
    module : torch.nn.Module
        Any module.

    Yields
    ------
    name : str
        As in ``named_parameters``.
    parameter : geoopt.ManifoldParameter
        The parameter.
    """
    for name, parameter in module.named_parameters():
        if is_low_rank(parameter):
            yield name, parameter


def _own(module: nn.Module) -> Iterator[tuple[str, geoopt.ManifoldParameter]]:
    """The declared parameters; conversions that made plain ones of them, as ``to_empty`` does, are mended."""
    declared = module.__dict__.setdefault(_DECLARED, {})
    for name, parameter in list(module.named_parameters(recurse=False)):
        known = declared.get(name)
        if known is not None and type(parameter) is nn.Parameter and parameter.shape == known.shape:
            parameter = geoopt.ManifoldParameter(parameter.detach(), known.manifold, parameter.requires_grad)
            module.register_parameter(name, parameter)
        if is_low_rank(parameter):
            declared[name] = parameter
            yield name, parameter


def _save_ranks(
    module: nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, local_metadata: Mapping[str, Any]
) -> None:
    for name, parameter in _own(module):
        ranks = rank_tuple(parameter.manifold.rank)
        state_dict[f"{prefix}{name}{_RANK}"] = torch.tensor(ranks, device="cpu")


def _load_ranks(
    module: nn.Module,
    state_dict: dict[str, torch.Tensor],
    prefix: str,
    local_metadata: Mapping[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    assigns = local_metadata.get("assign_to_params_buffers", False)
    for name, parameter in _own(module):
        key = f"{prefix}{name}"
        saved = state_dict.get(key)
        ranks = state_dict.pop(f"{key}{_RANK}", None)
        if saved is None:
            continue
        if ranks is None:
            if getattr(saved, "shape", None) != parameter.shape:
                error_msgs.append(f"{key}{_RANK} is missing, so the rank of {key} is not known")
            elif assigns:
                state_dict[key] = geoopt.ManifoldParameter(saved, parameter.manifold, parameter.requires_grad)
            continue
        try:
            manifold = _saved_manifold(parameter, saved, ranks)
        except ValueError as error:
            error_msgs.append(f"{key}: {error}")
            state_dict[key] = parameter  # which leaves it as it is
            continue
        if manifold != parameter.manifold:
            move_(parameter, manifold, parameter.new_zeros(*parameter.shape[:-1], manifold.size))
        if assigns:
            # The saved tensor becomes the parameter itself, so it must know its manifold.
            state_dict[key] = geoopt.ManifoldParameter(saved, manifold, parameter.requires_grad)


def _saved_manifold(parameter: geoopt.ManifoldParameter, saved: object, ranks: object) -> LowRankManifold:
    """The manifold at the saved ranks, if the saved point fits it; known before anything is allocated."""
    present = rank_tuple(parameter.manifold.rank)
    numbers = check_tensor("the saved rank", ranks, (len(present),))
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise ValueError(f"the saved rank consists of {numbers.dtype}, not of whole numbers")
    manifold = parameter.manifold.with_rank(tuple(numbers.tolist()))
    point = check_tensor("the saved point", saved, like=parameter if parameter.is_meta else None)
    if point.shape[-1:] != (manifold.size,):
        found = point.shape[-1] if point.ndim else "none"
        raise ValueError(f"{manifold} needs {manifold.size} numbers, the saved ones are {found}")
    if point.shape[:-1] != parameter.shape[:-1]:
        raise ValueError(
            f"the saved point has the shape {tuple(point.shape)}, the parameter {tuple(parameter.shape)}"
        )
    if not point.is_floating_point():
        raise ValueError(f"the saved point is of {point.dtype}")
    return manifold
