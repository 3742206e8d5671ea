"""Gradients of low-rank parameters, averaged over the processes of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import geoopt
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.hooks import RemovableHandle

from tenfold.distributed import collectives
from tenfold.distributed.beside_torch import low_rank_names, without_holding
from tenfold.distributed.fingerprint import fingerprint
from tenfold.distributed.registry import enter, is_known, leave, reducer_of
from tenfold.manifolds import is_low_rank, move_, rank_tuple

__all__ = ["ManifoldReducer"]


class ManifoldReducer:
    r"""Averages the gradients of low-rank parameters over processes, at any rank.

    ``DistributedDataParallel`` copies gradients into buckets whose sizes are fixed when it is built, so it
    cannot follow a parameter whose rank changes. Here the gradients, which are small, travel in one
    flat all-reduce at the end of every backward pass, in the shapes that they have then. Averaging is
    linear and leaves alone what is averaged already, so gradient accumulation is right with
    or without :meth:`no_sync`, which only saves the communication.

    Ranks are decided in process 0, and after every decision the processes compare fingerprints of points and
    optimizer state.

    Parameters
    ----------
    module : torch.nn.Module
        Its low-rank parameters are reduced, but for those that another reducer has and those that are
        :func:`independent`. They are marked so that a ``DistributedDataParallel`` built around this module
        (not around one that contains it) leaves them alone. They, and their ranks, become those of process 0.
        The reducer lives as long as they do, whether or not it is kept elsewhere.
    process_group : torch.distributed.ProcessGroup or None
        The processes; None means all.
    on_difference : {"raise", "broadcast"}
        What happens if a point or its state is not the same bit for bit in all processes after a
        rank decision: an error, or everybody takes what process 0 has. Unlike processors, or
        decompositions that are not deterministic, need ``"broadcast"``.

    Attributes
    ----------
    active : bool
        Whether backward passes end with a reduction; :meth:`no_sync` clears it for a while.
    bytes_reduced : int
        What this process has put into all-reduces of gradients so far, in bytes.

    Raises
    ------
    ValueError
        If ``torch.distributed`` is not initialised, there is no low-rank parameter to reduce, or the
        parameters are not the same in all processes.

    Notes
    -----
    Complexity per backward pass: one all-reduce of the factored parameters and one number for each, per
    type; four to sixteen bytes for each parameter after a rank decision. Every process must run as many
    backward passes as the others, with a gradient for some parameter of the module, and freeze the same ones.
    """

    def __init__(
        self,
        module: nn.Module,
        process_group: dist.ProcessGroup | None = None,
        *,
        on_difference: Literal["raise", "broadcast"] = "raise",
    ):
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError("call torch.distributed.init_process_group() before building a ManifoldReducer")
        if on_difference not in ("raise", "broadcast"):
            raise ValueError(f"on_difference must be 'raise' or 'broadcast', got {on_difference!r}")
        low_rank = [(name, p) for name, p in module.named_parameters() if is_low_rank(p)]
        named = [(name, p) for name, p in low_rank if not is_known(p)]
        if not named:
            already = f": all {len(low_rank)} have a reducer already or are independent" if low_rank else ""
            raise ValueError(f"{type(module).__name__} has no low-rank parameter to reduce{already}")
        self.process_group = process_group
        self.processes = dist.get_world_size(process_group)
        self.on_difference = on_difference
        self.bytes_reduced = 0
        self._names = [name for name, _ in named]
        self._parameters = [p for _, p in named]
        self.active = True
        self._task: int | None = None
        self._agree_on_structure()
        self._start_equal()
        ignored = {*getattr(module, "_ddp_params_and_buffers_to_ignore", ()), *low_rank_names(module)}
        nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, ignored)
        self._handles: list[RemovableHandle] = []
        self.listen(module)
        for p in self._parameters:
            enter(p, self)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """A parameter that is pickled comes back without its reducer."""
        return type(None), ()

    # Gradients --------------------------------------------------------------------------------

    def listen(self, module: nn.Module) -> None:
        """Wake up with the gradients of a module's parameters, in the place of those before.

        Parameters
        ----------
        module : torch.nn.Module
            The module that was given, whose plain parameters may be other objects now.
        """
        for handle in self._handles:
            handle.remove()
        # Every parameter wakes it: a batch may leave all low-rank ones out in this process and not in others.
        wake = without_holding(self._gradient_arrived)
        self._handles = [
            _hooked(p, wake) for p in module.parameters() if p.is_floating_point() or p.is_complex()
        ]

    def _gradient_arrived(self, _: torch.Tensor) -> None:
        """Ask once per backward pass to be called at its end."""
        if not self.active:
            return
        task = torch._C._current_graph_task_id()
        if task == self._task:
            return
        self._task = task
        torch.autograd.Variable._execution_engine.queue_callback(self.reduce_gradients)

    @torch.no_grad()
    def reduce_gradients(self) -> None:
        """Average the gradients now; backward passes outside :meth:`no_sync` end with it.

        A parameter without a gradient here gets one if it has one in another process.
        """
        self._task = None
        live = [p for p in self._parameters if p.requires_grad]
        if not live:
            return
        present = live[0].new_tensor([p.grad is not None for p in live])
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in live]
        anywhere, *means = self.mean([present, *grads])
        for k, (p, mean) in enumerate(zip(live, means, strict=True)):
            if p.grad is not None:
                p.grad.copy_(mean)
            elif anywhere[k] > 0:
                p.grad = mean.clone()

    def is_within(self, parameters: set[torch.Tensor]) -> bool:
        """Whether all that is reduced here is among some parameters.

        Parameters
        ----------
        parameters : set of torch.Tensor
            Any parameters.
        """
        return parameters.issuperset(self._parameters)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes inside keep their gradients; the next one outside averages the sum."""
        active, self.active = self.active, False
        try:
            yield
        finally:
            self.active = active

    # What processes agree on ------------------------------------------------------------------

    @torch.no_grad()
    def mean(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Means of tensors over the processes, in one all-reduce per type.

        Parameters
        ----------
        tensors : sequence of torch.Tensor
            Of the same shapes in all processes.

        Returns
        -------
        list of torch.Tensor
            New tensors.
        """
        self.bytes_reduced += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return collectives.mean(tensors, self.process_group)

    def first(self, ranks: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        """The ranks that process 0 has decided on.

        Parameters
        ----------
        ranks : sequence of sequence of int
            What this process has decided; as many numbers as in the others.
        """
        sent = torch.tensor([rank for each in ranks for rank in each], dtype=torch.int64)
        collectives.from_first(sent, self.process_group)
        numbers = sent.tolist()
        decided = []
        for each in ranks:
            decided.append(tuple(numbers[: len(each)]))
            del numbers[: len(each)]
        return decided

    @torch.no_grad()
    def check(self, items: Sequence[tuple[geoopt.ManifoldParameter, dict[str, Any]]]) -> None:
        """Compare points and state between the processes.

        Parameters
        ----------
        items : sequence of (geoopt.ManifoldParameter, dict)
            Parameters of this reducer, and their optimizer state, in the same order everywhere.

        Raises
        ------
        RuntimeError
            In all processes, if a parameter or its state differs from that of process 0 and ``on_difference``
            is ``"raise"``.
        """
        if not items or self.processes == 1:
            return
        ranks = [rank_tuple(p.manifold.rank) for p, _ in items]
        device = self._parameters[0].device
        mine = torch.stack(
            [fingerprint(rank, []).to(device) for rank in ranks]
            + [fingerprint([], [p, *_tensors(state)]).to(device) for p, state in items]
        )
        rows = collectives.gathered(mine, self.process_group)
        for process, row in enumerate(rows):
            for k in _unlike(rows[0], row):
                p, _ = items[k % len(items)]
                what = "rank" if k < len(items) else "value or optimizer state"
                if self.on_difference == "raise" or k < len(items):
                    raise RuntimeError(
                        f"process {process} differs from process 0 in the {what} of {self._name(p)} "
                        "after a rank decision: did every "
                        "process take the same steps, on the same kind of processor? "
                        "ManifoldReducer(..., on_difference='broadcast') takes over the values of process 0"
                    )
        if any(row != rows[0] for row in rows):
            for p, state in items:
                for tensor in (p.detach(), *_tensors(state)):
                    collectives.from_first(tensor, self.process_group)

    # Set-up -----------------------------------------------------------------------------------

    def _name(self, parameter: torch.Tensor) -> str:
        return next(n for n, p in zip(self._names, self._parameters, strict=True) if p is parameter)

    def _agree_on_structure(self) -> None:
        """Raise in all processes unless they have the same parameters, whatever their ranks."""
        described = repr(
            [
                (
                    name,
                    type(p.manifold).__name__,
                    p.manifold.shape,
                    tuple(p.shape[:-1]),
                    str(p.dtype),
                    "trained" if p.requires_grad else "frozen",
                )
                for name, p in zip(self._names, self._parameters, strict=True)
            ]
        )
        mark = fingerprint(described.encode(), [])
        rows = collectives.gathered(mark.reshape(1), self.process_group)
        for process, row in enumerate(rows):
            if row != rows[0]:
                raise ValueError(
                    f"process {process} has other low-rank parameters than process 0; "
                    f"here they are {described}"
                )

    def _start_equal(self) -> None:
        """Take over ranks and points of process 0."""
        decided = self.first([rank_tuple(p.manifold.rank) for p in self._parameters])
        for p, rank in zip(self._parameters, decided, strict=True):
            if rank != rank_tuple(p.manifold.rank):
                manifold = p.manifold.with_rank(rank)
                move_(p, manifold, p.detach().new_zeros(*p.shape[:-1], manifold.size))
            collectives.from_first(p.detach(), self.process_group)

    def close(self) -> None:
        """Stop reducing and let go of the parameters."""
        for handle in self._handles:
            handle.remove()
        for p in self._parameters:
            if reducer_of(p) is self:
                leave(p)


def _hooked(p: torch.Tensor, hook: Callable[[torch.Tensor], None]) -> RemovableHandle:
    """A hook for the gradient of a parameter, also of one that is frozen now and trained later."""
    trained = p.requires_grad
    handle: RemovableHandle = p.requires_grad_(True).register_post_accumulate_grad_hook(hook)
    p.requires_grad_(trained)
    return handle


def _tensors(state: dict[str, Any]) -> list[torch.Tensor]:
    return [state[name] for name in sorted(state) if isinstance(state[name], torch.Tensor)]


def _unlike(first: Sequence[int], other: Sequence[int]) -> list[int]:
    return [k for k, (a, b) in enumerate(zip(first, other, strict=True)) if a != b]
