"""Steps with NaN or infinity in them are refused, and lost digits announced."""

from __future__ import annotations

import math
import warnings

import torch

from tenfold.distributed.sharded import is_sharded, total, whole
from tenfold.linalg import NonFiniteError
from tenfold.optim.checked import CheckedOptimizer
from tenfold.optim.update import Update

__all__ = ["FiniteOptimizer", "IllConditionedWarning", "magnitude"]


class IllConditionedWarning(UserWarning):
    """Gradients of a low-rank parameter lose digits because its core is ill-conditioned."""


class FiniteOptimizer(CheckedOptimizer):
    """An optimizer that looks at a step before it is carried out."""

    _warned = False

    def _require_finite(
        self, grads: list[torch.Tensor], updates: list[Update], conditioning: list[torch.Tensor]
    ) -> None:
        """Raise unless everything is finite, and warn of lost digits; one synchronisation."""
        tensors = [*grads, *(tensor for update in updates for tensor in update.tensors)]
        if not tensors:
            return
        largest = magnitude(tensors)
        watched = [] if self._warned else [item.to(largest) for item in conditioning]
        bound, *reciprocals = torch.stack([largest, *watched]).tolist()
        if not math.isfinite(bound):
            self._refuse(updates)  # unless only the sum has overflowed
        self._warn(min(reciprocals, default=1.0), [item.dtype for item in conditioning])

    def _refuse(self, updates: list[Update]) -> None:
        for name, parameter in self._named():
            if parameter.grad is not None and not torch.isfinite(whole(parameter.grad)).all():
                raise NonFiniteError(f"the gradient of {name} holds NaN or infinity; nothing was changed")
        for update in updates:
            if not all(torch.isfinite(tensor).all() for tensor in update.tensors):
                name = self._name(update.parameter)
                raise NonFiniteError(f"the step of {name} overflows; nothing was changed")

    def _warn(self, reciprocal: float, dtypes: list[torch.dtype]) -> None:
        eps = max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)
        if eps <= 0.01 * reciprocal:
            return
        self._warned = True
        warnings.warn(
            f"a core has a condition number above {1 / max(reciprocal, 1e-300):.1g}, so gradients may keep "
            "fewer than two digits in its smallest directions; truncate (rank_adaptation), damp "
            "(damping=0.1), or use a lifted() manifold, whose gradients divide by nothing",
            IllConditionedWarning,
            stacklevel=5,
        )


def magnitude(tensors: list[torch.Tensor]) -> torch.Tensor:
    """A zero-dimensional tensor that is finite if, short of overflow, all tensors are.

    Parameters
    ----------
    tensors : list of torch.Tensor
        At least one.
    """
    sharded = [tensor for tensor in tensors if is_sharded(tensor)]
    if sharded:
        others = [tensor for tensor in tensors if not is_sharded(tensor)]
        parts = [total(sharded), *([magnitude(others)] if others else [])]
        return torch.stack(parts).sum()
    tensors = [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in tensors]
    if all(tensor.device.type == "cpu" for tensor in tensors):
        # The fastest pass there; sums of half precision would overflow early.
        wide = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
        return torch.stack([tensor.sum(dtype=wide.get(tensor.dtype)).double() for tensor in tensors]).sum()
    return torch.nn.utils.get_total_norm(tensors, float("inf"))
