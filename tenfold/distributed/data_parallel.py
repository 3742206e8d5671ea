"""Data-parallel training through rank changes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NoReturn

import torch.distributed as dist
from torch import nn

from tenfold.distributed.reducer import ManifoldReducer
from tenfold.manifolds import is_low_rank

__all__ = ["DistributedDataParallel"]


class DistributedDataParallel(nn.parallel.DistributedDataParallel):
    """torch's ``DistributedDataParallel`` for modules with parameters that change their rank.

    Plain parameters and buffers are torch's business, with its buckets and their overlap with the backward
    pass; gradients of low-rank parameters are averaged by a :class:`ManifoldReducer`.

    Parameters
    ----------
    module : torch.nn.Module
        The network, with at least one low-rank and one plain parameter to train.
    on_difference : {"raise", "broadcast"}
        As for :class:`ManifoldReducer`.
    *arguments, **options
        As for ``torch.nn.parallel.DistributedDataParallel``; low-rank parameters, too, are averaged over its
        ``process_group`` or ``device_mesh``.

    Attributes
    ----------
    manifolds : ManifoldReducer
        Who reduces the low-rank parameters.

    Raises
    ------
    ValueError
        If ``torch.distributed`` is not initialised, the low-rank parameters differ between the processes, or
        there is no plain parameter to train, without which torch's class cannot be built.
    RuntimeError
        If ``device_mesh`` has more than one dimension, or comes with a ``process_group``.
    """

    manifolds: ManifoldReducer

    def __init__(
        self,
        module: nn.Module,
        *arguments: Any,
        on_difference: Literal["raise", "broadcast"] = "raise",
        **options: Any,
    ):
        group = _process_group(self, module, *arguments, **options)
        if not any(p.requires_grad and not is_low_rank(p) for p in module.parameters()):
            raise ValueError(
                f"{type(module).__name__} has no plain parameter to train, and torch's class needs one: "
                "build a ManifoldReducer on it and call the module itself"
            )
        reducer = ManifoldReducer(module, group, on_difference=on_difference)
        try:
            super().__init__(module, *arguments, **options)
        except BaseException:
            reducer.close()
            raise
        self.manifolds = reducer
        self._on_difference = on_difference

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy gets a reducer of its own; all processes must train it, though one may copy alone."""
        super().__setstate__(state)
        self.manifolds = _CopysReducer(self.module, self.process_group, on_difference=self._on_difference)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Keep gradients local; the next backward pass outside averages what has been accumulated."""
        with super().no_sync(), self.manifolds.no_sync():
            yield

    def join(self, *arguments: Any, **options: Any) -> NoReturn:
        """Refused: every process must take as many steps as the others.

        Raises
        ------
        NotImplementedError
            Always.
        """
        raise NotImplementedError(
            "join() is not supported: give every process equally many batches (drop_last=True)"
        )


class _CopysReducer(ManifoldReducer):
    """For parameters that are the same in all processes as those that they were copied from."""

    def _agree_on_structure(self) -> None:
        pass

    def _start_equal(self) -> None:
        pass


def _process_group(*arguments: Any, **options: Any) -> dist.ProcessGroup | None:
    """The processes that arguments of torch's class name; None means all."""
    signature = inspect.signature(nn.parallel.DistributedDataParallel.__init__)
    given = signature.bind(*arguments, **options).arguments
    group: dist.ProcessGroup | None = given.get("process_group")
    mesh = given.get("device_mesh")
    if mesh is None:
        return group
    if group is not None:
        raise RuntimeError("give DistributedDataParallel a process_group or a device_mesh, not both")
    if mesh.ndim != 1:
        raise RuntimeError(f"DistributedDataParallel needs a device_mesh of one dimension, got {mesh}")
    joined: dist.ProcessGroup = mesh.get_group()
    return joined
