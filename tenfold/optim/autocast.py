"""Steps in the precision of the parameters, whatever surrounds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch

__all__ = ["without_autocast"]

Closure: TypeAlias = Callable[[], Any]


@contextmanager
def without_autocast(parameters: Iterable[torch.Tensor], closure: Closure | None = None) -> Iterator[Any]:
    """Switch ``torch.autocast`` off: decompositions do not exist in half precision, and products lose digits.

    Parameters
    ----------
    parameters : iterable of torch.Tensor
        On whose devices it is switched off.
    closure : callable or None
        What is evaluated inside nevertheless as it would have been outside.

    Yields
    ------
    callable or None
        The closure, which brings the caller's autocast with it.
    """
    kinds = {p.device.type for p in parameters}
    kinds = {k for k in kinds if torch.amp.is_autocast_available(k) and torch.is_autocast_enabled(k)}
    dtypes = {kind: torch.get_autocast_dtype(kind) for kind in kinds}

    def as_outside() -> Any:
        assert closure is not None
        with ExitStack() as stack:
            for kind, dtype in dtypes.items():
                stack.enter_context(torch.autocast(kind, dtype))
            return closure()

    with ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield as_outside if closure is not None and kinds else closure
