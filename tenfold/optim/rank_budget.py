"""Ranks of a whole model within a budget of parameters."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from tenfold.optim.rank_adaptation import clear_ranks, relative_spectra
from tenfold.optim.rank_policy import Pending, RankPolicy, Ranks

__all__ = ["BudgetAdaptation"]


@dataclass(frozen=True)
class BudgetAdaptation(RankPolicy):
    r"""Ranks of all parameters of a group from one compression rate.

    The singular values of all tensors and all ranks compete: starting from all that are there, the one
    with the least relative energy ``sigma^2 / |W|^2`` per parameter that it costs is discarded, again and
    again, until the factors of the group fit the budget. Ranks that no tensor can have are lowered with
    their neighbours.

    Parameters
    ----------
    compression : float
        ``1 - stored / dense`` over the parameters of the group that have a gradient in that step, in (0, 1).
    final_compression : float or None
        The compression of the last decision before ``stop``, at least ``compression``. Between ``start`` and
        it the share that is stored falls geometrically; None keeps ``compression``.
    min_rank : int or float
        As for :class:`RankPolicy`, but 2 unless given: whatever a network computes passes through each of its
        layers, and a small budget would leave some of them rank 1, from which they hardly come back. Beside
        weights that stay, as adapters are, 1 does no such harm.
    max_rank, every, start, stop, multiple_of, hysteresis
        As for :class:`RankPolicy`; the limits, rounding and hysteresis come after the budget and may
        exceed it.
    oversampling : int
        As for :class:`RankPolicy`, but within the budget: a direction competes with the singular value of the
        one so many places before it. So ranks move from one tensor to another that would need them more,
        which they hardly do otherwise: what a step opens is smaller than what is there already.

    Raises
    ------
    ValueError
        If an argument is out of range, or ``final_compression`` is given without a ``stop`` that leaves time
        for a decision; in a step, if the lowest allowed ranks exceed the budget.

    Notes
    -----
    With a budget that falls, training itself chooses the directions to keep among more than there is room for
    in the end.

    References
    ----------
    Bini et al., "GeoLoRA: geometric integration for parameter efficient fine-tuning", 2024
    (arXiv 2410.18720), for the global ranking. Zhang et al., "AdaLoRA: adaptive budget allocation for
    parameter-efficient fine-tuning", ICLR 2023, for a budget that falls.

    Examples
    --------
    >>> policy = BudgetAdaptation(0.5, final_compression=0.9, every=10, stop=1000)
    >>> [round(policy.budget(step), 2) for step in (10, 500, 1000)]
    [0.51, 0.78, 0.9]
    """

    compression: float
    final_compression: float | None = None
    min_rank: int | float = field(default=2, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.compression < 1:
            raise ValueError(f"compression must lie in (0, 1), got {self.compression}")
        if self.final_compression is None:
            return
        if not self.compression <= self.final_compression < 1:
            raise ValueError(
                f"final_compression must lie in [compression, 1) = [{self.compression}, 1), "
                f"got {self.final_compression}"
            )
        if self.stop is None or self.stop - self.start < self.every:
            raise ValueError(
                f"final_compression is never reached: there is no decision between start={self.start} and "
                f"stop={self.stop} with every={self.every}"
            )

    def budget(self, step: int) -> float:
        """The compression that a step, counted from 1, asks for."""
        if self.final_compression is None:
            return self.compression
        part = self.progress(step)
        return 1 - (1 - self.compression) ** (1 - part) * (1 - self.final_compression) ** part

    def wanted(
        self, pending: Sequence[Pending], limits: Sequence[list[tuple[int, int]]], step: int
    ) -> list[Ranks]:
        compression = self.budget(step)
        counts = [item.truncation.singular_values[0].shape[:-1].numel() for item in pending]  # of batches
        allowed = (1 - compression) * _inner(counts, [item.manifold.dense_size for item in pending])
        ranks = [[high for _, high in bounds] for bounds in limits]
        sizes = [item.manifold.size_at(r) for item, r in zip(pending, ranks, strict=True)]
        spare = self.spare(step)
        energies = [_energies(item, spare) for item in pending]
        queue: list[tuple[float, int, int, int]] = []

        def offer(n: int, k: int) -> None:
            """Put the smallest remaining singular value of a rank up for discarding."""
            rank = ranks[n][k]
            if rank <= limits[n][k][0]:
                return
            saved = sizes[n] - pending[n].manifold.size_at([*ranks[n][:k], rank - 1, *ranks[n][k + 1 :]])
            heapq.heappush(queue, (energies[n][k][rank - 1] / max(saved, 1), n, k, rank))

        for n, bounds in enumerate(limits):
            for k in range(len(bounds)):
                offer(n, k)
        while _inner(counts, sizes) > allowed:
            if not queue:
                raise ValueError(
                    f"the lowest ranks allowed need {_inner(counts, sizes)} parameters, but compression "
                    f"{compression:g} leaves {int(allowed)}: lower min_rank or compression"
                )
            _, n, k, rank = heapq.heappop(queue)
            if rank != ranks[n][k]:
                continue
            ranks[n][k] -= 1
            sizes[n] = pending[n].manifold.size_at(ranks[n])
            offer(n, k)
        return [tuple(r) for r in ranks]


def _energies(item: Pending, spare: int) -> list[list[float]]:
    """What each direction goes by: its relative energy, or that of the one `spare` places before it."""
    spectra = relative_spectra(item.truncation.singular_values)
    energies = [[value**2 for value in values] for values in spectra]
    if not spare:
        return energies
    return [
        [values[max(j - spare, 0) if j < most else j] for j in range(len(values))]
        for values, most in zip(energies, clear_ranks(item), strict=True)
    ]


def _inner(counts: Sequence[int], sizes: Sequence[int]) -> int:
    """Numbers in all members of all batches, each of a size."""
    return sum(count * size for count, size in zip(counts, sizes, strict=True))
