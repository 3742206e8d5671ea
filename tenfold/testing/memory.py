"""How large the arrays are that an operation allocates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tenfold.manifolds import LowRankManifold

__all__ = ["low_rank_operations", "peak"]


class _Probe(TorchDispatchMode):
    """Remembers the largest storage behind the result of any torch operation; views add nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                numbers = leaf.untyped_storage().nbytes() // leaf.element_size()
                self.largest = max(self.largest, numbers)
        return result


def peak(action: Callable[[], object]) -> int:
    """Numbers in the largest array that ``action`` makes, not counting what torch allocates and frees inside
    of one operation.

    Parameters
    ----------
    action : callable
        Called once.

    Returns
    -------
    int
        The number of entries.
    """
    with _Probe() as probe:
        action()
    return probe.largest


def low_rank_operations(manifold: LowRankManifold, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Every operation that must never see a dense tensor, by name, at one point.

    Parameters
    ----------
    manifold : LowRankManifold
        The manifold.
    x : torch.Tensor
        A point, shape ``(*batch, manifold.size)``.

    Returns
    -------
    dict of str to callable
        Without arguments.
    """
    m = manifold
    u = m.proju(x, torch.randn_like(x))
    y = m.retr(x, u)
    return {
        "random": lambda: m.random(*x.shape, dtype=x.dtype, device=x.device),
        "origin": lambda: m.origin(*x.shape, dtype=x.dtype, device=x.device),
        "check_point_on_manifold": lambda: m.check_point_on_manifold(x),
        "check_vector_on_tangent": lambda: m.check_vector_on_tangent(x, u),
        "projx": lambda: m.projx(x),
        "inner": lambda: m.inner(x, u, u),
        "norm": lambda: m.norm(x, u),
        "component_inner": lambda: m.component_inner(x, u, u),
        "radial": lambda: m.radial(x),
        "proju": lambda: m.proju(x, u),
        "egrad2rgrad": lambda: m.egrad2rgrad(x, u),
        "retr": lambda: m.retr(x, u),
        "expmap": lambda: m.expmap(x, u),
        "transp": lambda: m.transp(x, y, u),
        "retr_transp": lambda: m.retr_transp(x, u, u),
        "singular_values": lambda: m.singular_values(x),
        "truncation": lambda: m.truncation(x, u).to(m.rank),
        "truncate": lambda: m.truncate(x, tol=0.1),
        "retr_adaptive": lambda: m.retr_adaptive(x, u, tol=0.1),
    }
