"""Data-parallel training through rank changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NoReturn

from torch import nn

from tenfold.distributed.reducer import ManifoldReducer

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
        As for ``torch.nn.parallel.DistributedDataParallel``.

    Attributes
    ----------
    manifolds : ManifoldReducer
        Who reduces the low-rank parameters.

    Raises
    ------
    ValueError
        If ``torch.distributed`` is not initialised, or the low-rank parameters differ between the processes.
    """

    manifolds: ManifoldReducer

    def __init__(
        self,
        module: nn.Module,
        *arguments: Any,
        on_difference: Literal["raise", "broadcast"] = "raise",
        **options: Any,
    ):
        reducer = ManifoldReducer(module, options.get("process_group"), on_difference=on_difference)
        super().__init__(module, *arguments, **options)
        self.manifolds = reducer

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
