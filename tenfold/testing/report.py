"""Reports: every check on a manifold, as an object and as a table."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import geoopt
import torch

from tenfold.testing.check import CHECKS
from tenfold.testing.kinds import subject_of
from tenfold.testing.outcome import CheckResult, Status
from tenfold.testing.points import Spectrum
from tenfold.testing.sample import Sample
from tenfold.testing.subject import Embedding, LowRankSubject, Subject

__all__ = ["Report", "check_manifold"]

_SETTINGS: tuple[tuple[tuple[int, ...], torch.dtype, float, Spectrum], ...] = (
    ((3,), torch.float64, 1.0, Spectrum.DECAY),
    ((), torch.float64, 1e3, Spectrum.DECAY),
    ((2, 2), torch.float32, 1e1, Spectrum.DECAY),
    ((8,), torch.float64, 1.0, Spectrum.EQUAL),
    ((1,), torch.float32, 1e2, Spectrum.DECAY),
    ((2, 3), torch.float64, 1e1, Spectrum.DECAY),
)
"""Batch, type, condition number and spectrum of the examples, repeated with other seeds."""


@dataclass(frozen=True)
class Report:
    """What the kit found about a manifold; ``print`` shows it as a table.

    Attributes
    ----------
    subject : str
        The manifold, in words.
    results : tuple of CheckResult
        One per check, over all examples.
    """

    subject: str
    results: tuple[CheckResult, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def failed(self) -> tuple[str, ...]:
        """Ids of the checks that failed."""
        return self._with(Status.FAILED)

    @property
    def passed(self) -> tuple[str, ...]:
        """Ids of the checks that passed."""
        return self._with(Status.PASSED)

    @property
    def not_applicable(self) -> tuple[str, ...]:
        """Ids of the checks that have no meaning for this manifold."""
        return self._with(Status.NOT_APPLICABLE)

    def _with(self, status: Status) -> tuple[str, ...]:
        return tuple(result.id for result in self.results if result.status is status)

    def __getitem__(self, id: str) -> CheckResult:
        for result in self.results:
            if result.id == id:
                return result
        raise KeyError(f"no check {id} in this report of {[result.id for result in self.results]}")

    def __iter__(self) -> Iterator[CheckResult]:
        return iter(self.results)

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("", "verdict", "error/bound", "slope", "examples", "statement")]
        rows += [_row(result) for result in self.results]
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]) - 1)]
        lines = [
            "  ".join([*(cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=True)), row[-1]])
            for row in rows
        ]
        for status in (Status.NOT_APPLICABLE, Status.FAILED):
            reasons = [
                f"  {result.id}  {result.reason}" for result in self.results if result.status is status
            ]
            lines += ["", f"{status}:", *reasons] if reasons else []
        counts = (
            f"{len(self.passed)} passed, {len(self.failed)} failed, {len(self.not_applicable)} not applicable"
        )
        return "\n".join([self.subject, *lines, "", counts])


def _row(result: CheckResult) -> tuple[str, ...]:
    measured = result.status is not Status.NOT_APPLICABLE and result.worst is not None
    ratio = f"{result.worst.ratio:.2g}" if measured and result.worst is not None else "-"
    slope = "-" if result.slope is None else f"{result.slope:.2f}"
    return result.id, str(result.status), ratio, slope, str(result.examples), result.title


def examples_of(subject: Subject, count: int, seed: int) -> list[Sample]:
    """The first ``count`` examples, each with a seed of its own."""
    low_rank = isinstance(subject, LowRankSubject)
    settings = [
        setting
        for setting in _SETTINGS
        if low_rank or setting[1:] == (torch.float64, setting[2], Spectrum.DECAY)
    ]
    samples = []
    for k, (batch, dtype, condition, spectrum) in zip(range(count), itertools.cycle(settings), strict=False):
        samples.append(Sample(subject.at(dtype), batch, dtype, seed + k, condition, spectrum))
    return samples


def check_manifold(
    manifold: geoopt.Manifold,
    *,
    checks: Iterable[str] | None = None,
    examples: int = 4,
    seed: int = 0,
    shape: tuple[int, ...] | None = None,
    embed: Embedding | None = None,
    order: int | None = None,
) -> Report:
    """Run the kit on a manifold.

    Low-rank manifolds are seen through their dense tensors. For other manifolds of geoopt the stored
    tensor is its own embedding, and the report says which checks do not apply to them and why. They are
    checked in float64 only.

    Parameters
    ----------
    manifold : geoopt.Manifold
        The manifold.
    checks : iterable of str or None
        Ids of the checks to run; None means all.
    examples : int
        Batches of points on which each check is measured, at least 1.
    seed : int
        Seed of the first example.
    shape : tuple of int or None
        Shape of a point, for manifolds that do not know it; None tries a few small ones.
    embed : callable or None
        Packed points to dense tensors, if not ``manifold.to_dense``: an independent embedding makes the
        kit check that method, too.
    order : int or None
        Claimed order of the retraction, 1 or 2; None means what the manifold states as
        ``retraction_order``, if it does.

    Returns
    -------
    Report
        One result per check.

    Raises
    ------
    TypeError
        If ``manifold`` is not a ``geoopt.Manifold``.
    ValueError
        If a check is unknown, ``examples`` is below 1, or an argument does not apply.

    Examples
    --------
    >>> from tenfold.manifolds import TuckerManifold
    >>> from tenfold.testing import check_manifold
    >>> check_manifold(TuckerManifold((5, 4, 3), rank=2), checks=["T2", "R3"]).ok
    True
    """
    if examples < 1:
        raise ValueError(f"examples must be at least 1, got {examples}")
    ids = list(CHECKS) if checks is None else list(checks)
    unknown = [id for id in ids if id not in CHECKS]
    if unknown:
        raise ValueError(f"unknown checks {unknown}; there are {list(CHECKS)}")
    subject = subject_of(manifold, shape=shape, embed=embed, order=order)
    samples = examples_of(subject, examples, seed)
    results = []
    for id in ids:
        found = [CHECKS[id].on(sample.fresh()) for sample in samples]
        result = found[0]
        for other in found[1:]:
            result = result.joined(other)
        results.append(result)
    return Report(str(subject), tuple(results))
