"""Wrong manifolds: each a right one with a single mistake, and the check that must find it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tenfold.manifolds import LowRankManifold, TuckerManifold

__all__ = ["MUTANTS", "Mutant", "blocks_of", "mutant"]


@dataclass(frozen=True)
class Mutant:
    """A wrong manifold, the right one, and the id of the check that tells them apart."""

    id: str
    wrong: LowRankManifold
    right: LowRankManifold

    def __str__(self) -> str:
        return f"{self.id}-{type(self.wrong).__name__}"


MUTANTS: list[Mutant] = []


def mutant(id: str, shape: Any = (5, 4, 3), rank: Any = (3, 2, 2), **more: Any) -> Any:
    """Enter a subclass of a right manifold as a mutant that check ``id`` must reject."""

    def enter(wrong: type[LowRankManifold]) -> type[LowRankManifold]:
        right = next(base for base in wrong.__mro__ if base.__module__.startswith("tenfold."))
        MUTANTS.append(Mutant(id, wrong(shape, rank, **more), right(shape, rank, **more)))
        return wrong

    return enter


def blocks_of(manifold: TuckerManifold, *packed: Any) -> list[Any]:
    """Factors (or blocks) of packed vectors as lists ``[core, factor, ...]`` that may be changed."""
    unpacked = [list(manifold.unpack_tensor(item)) for item in packed]
    return unpacked[0] if len(unpacked) == 1 else unpacked
