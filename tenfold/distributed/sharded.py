"""Sharded training (FSDP2): plain parameters in pieces, low-rank ones whole in every process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import geoopt
import torch
import torch.distributed as dist
from torch import nn

from tenfold.distributed.reducer import ManifoldReducer
from tenfold.distributed.registry import is_known, reducer_of
from tenfold.manifolds import is_low_rank

__all__ = ["fully_shard", "is_sharded", "total", "whole"]


def fully_shard(
    module: nn.Module,
    *,
    mesh: Any = None,
    ignored_params: set[nn.Parameter] | None = None,
    on_difference: Literal["raise", "broadcast"] = "raise",
    **options: Any,
) -> nn.Module:
    """torch's ``fully_shard`` for modules with low-rank parameters.

    A low-rank parameter cut into pieces would be no point of its manifold, and its factors are small: it
    stays whole in every process, and a :class:`ManifoldReducer` averages its gradient. Call it on the blocks
    and then on the network, as torch's, and build the optimizer afterwards.

    Parameters
    ----------
    module : torch.nn.Module
        A block or the whole network; changed in place.
    mesh : torch.distributed.device_mesh.DeviceMesh or None
        As for torch's; None means all processes.
    ignored_params : set of torch.nn.Parameter or None
        Further parameters to leave whole, which nobody reduces.
    on_difference : {"raise", "broadcast"}
        As for :class:`ManifoldReducer`.
    **options
        As for ``torch.distributed.fsdp.fully_shard``.

    Returns
    -------
    torch.nn.Module
        The module.

    Raises
    ------
    ValueError
        If ``torch.distributed`` is not initialised, the low-rank parameters differ between the processes, or
        a parameter lies on another manifold and is not ignored.

    Notes
    -----
    ``set_requires_gradient_sync(False)`` holds for the low-rank parameters of the module, too: for all below
    it, or with ``recurse=False`` for those that no block inside has been sharded with.
    """
    from torch.distributed.fsdp import fully_shard as shard

    low_rank = {p for p in module.parameters() if is_low_rank(p)}
    ignored = low_rank | (ignored_params or set())
    for name, p in module.named_parameters():
        if not isinstance(p, geoopt.ManifoldParameter) or isinstance(p.manifold, geoopt.Euclidean):
            continue
        if p not in ignored:
            raise ValueError(
                f"{name} lies on {p.manifold} and would be cut into pieces that are no points: leave it "
                "whole by ignored_params, and average its gradient yourself"
            )
    own = {p for p in low_rank if not is_known(p)}
    reducer: ManifoldReducer | None = None
    if own:
        whole_world = mesh is None or mesh.size() == dist.get_world_size()
        group = None if whole_world else mesh.get_group()
        reducer = ManifoldReducer(module, group, on_difference=on_difference)
    sharded: Any = shard(module, mesh=mesh, ignored_params=ignored, **options)
    if reducer is not None:
        reducer.listen(module)
    switch = sharded.set_requires_gradient_sync

    def set_requires_gradient_sync(requires_gradient_sync: bool, *, recurse: bool = True) -> None:
        switch(requires_gradient_sync, recurse=recurse)
        reached = low_rank if recurse else own
        for each in {reducer_of(p) for p in reached}:
            if each is not None and each.is_within(reached):
                each.active = requires_gradient_sync

    sharded.set_requires_gradient_sync = set_requires_gradient_sync
    result: nn.Module = sharded
    return result


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether a process holds a part of a tensor only.

    Parameters
    ----------
    tensor : torch.Tensor
        Any tensor.
    """
    return hasattr(tensor, "full_tensor")


def total(tensors: Sequence[Any]) -> torch.Tensor:
    """The sum of all entries of some sharded tensors, float64, the same in every process.

    Parameters
    ----------
    tensors : sequence of torch.distributed.tensor.DTensor
        On one mesh, each entry in one process; all processes must call this.
    """
    result = torch.stack([tensor.to_local().sum().double() for tensor in tensors]).sum()
    mesh = tensors[0].device_mesh
    for dimension in range(mesh.ndim):
        dist.all_reduce(result, group=mesh.get_group(dimension))
    return result


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor; one that is not sharded passes unchanged.

    Parameters
    ----------
    tensor : torch.Tensor
        Any tensor; all processes must call this on their parts.
    """
    full: torch.Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return full
