"""Q: truncation and changes of rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch

from tenfold.manifolds import LowRankManifold
from tenfold.testing.check import check
from tenfold.testing.outcome import Measured, NotApplicable
from tenfold.testing.points import Spectrum, rank_one_sum, ranks_of
from tenfold.testing.properties.points import length, on_manifold
from tenfold.testing.properties.spectra import spectra, tails
from tenfold.testing.properties.tangents import is_tangent
from tenfold.testing.sample import Sample, holds
from tenfold.testing.subject import LowRankSubject
from tenfold.testing.tolerances import tolerance

__all__: list[str] = []

_REASON = "points of this manifold have no rank to truncate"
_TOLERANCES = (0.5, 0.1, 0.01)
_TERMS = 12


def decaying(s: Sample) -> torch.Tensor:
    """Dense tensors of norm 1 whose singular values decay by about a half each, ``(*batch, *shape)``."""
    weights = 0.5 ** torch.arange(_TERMS, dtype=s.dtype)
    return rank_one_sum(s.manifold, weights, s.generator, s.batch)


def _subject(s: Sample, *, full: bool) -> LowRankSubject:
    subject = s.low_rank(_REASON)
    if not ranks_of(s.manifold):
        raise NotApplicable("this format has no ranks at this shape")
    return LowRankSubject(s.manifold.with_rank(s.manifold.full_rank)) if full else subject


@check("Q1", "from_dense is quasi-optimal")
def quasi_optimal(s: Sample) -> Iterator[Measured]:
    subject = _subject(s, full=False)
    tensor, ranks = decaying(s), ranks_of(s.manifold)
    rows = subject.rows(tensor)
    error = length(subject.dense(s.manifold.from_dense(tensor)) - rows)
    cut = torch.stack(
        [tails(values)[..., rank] for values, rank in zip(spectra(s.manifold, tensor), ranks, strict=True)]
    )
    yield s.at_most(
        "the error is at most the root of the sum of the squared tails", error, length(cut.movedim(0, -1))
    )
    factor = math.sqrt(len(ranks))
    # No approximation is better than the largest tail.
    yield s.at_most(f"the error is at most {factor:.3g} times the best", error, factor * cut.amax(0))
    yield s.at_most("and at least the largest tail", cut.amax(0), error)


@check("Q2", "truncation honours its tolerance")
def honoured(s: Sample) -> Iterator[Measured]:
    subject = _subject(s, full=True)
    tensor = decaying(s)
    rows, x = subject.rows(tensor), subject.low_rank.from_dense(tensor)
    factor = math.sqrt(len(ranks_of(s.manifold)))
    limits, known = torch.ones(s.batch, dtype=torch.float64), spectra(s.manifold, tensor)
    for tol in _TOLERANCES:
        for name, (manifold, y) in {
            "approximate": s.manifold.approximate(tensor, tol=tol),
            "truncate": subject.low_rank.truncate(x, tol=tol),
        }.items():
            error = length(subject.rows(manifold.to_dense(y)) - rows)
            yield s.at_most(f"error of {name}, tol={tol:g}", error, factor * tol * limits)
            yield _enough(name, manifold, known, tol, tol * _slack(s))
    x, u, rows = _small_step(s, tensor)
    limits, known = length(rows), spectra(s.manifold, subject.tensors(rows))
    for tol in _TOLERANCES:
        manifold, y = s.manifold.retr_adaptive(x, u, tol=tol)
        error = length(subject.rows(manifold.to_dense(y)) - rows)
        yield s.at_most(f"error of retr_adaptive, tol={tol:g}", error, factor * tol * limits)
        yield _enough("retr_adaptive", manifold, known, tol, _slack(s))


def _small_step(s: Sample, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points near dense tensors, tangent vectors of a tenth of their length, and the sums as rows."""
    subject = _subject(s, full=False)
    x = s.manifold.from_dense(tensor)
    u = 0.1 * s.tangent(x)
    return x, u, subject.dense(x) + subject.tangent(x, u)


def _enough(
    name: str, manifold: LowRankManifold, known: list[torch.Tensor], tol: float, slack: float
) -> Measured:
    """The ranks cover those that the tolerance needs, if a tensor can have them.

    Ranks that no tensor can have are lowered; the bound on the error is then all that is promised.
    """
    wanted, found = tuple(_needed(values, tol + slack) for values in known), ranks_of(manifold)
    enough = not _feasible(manifold, wanted) or _covers(found, wanted)
    return holds(f"ranks {found} of {name} for {wanted}, tol={tol:g}", enough)


def _slack(s: Sample) -> float:
    """A tail within rounding of the tolerance may fall on either side of it.

    Relative to the tolerance for a dense tensor; the sum of a point and a step has errors of its own.
    """
    return 10 * s.tolerance()


def _needed(values: torch.Tensor, tol: float) -> int:
    """The smallest rank, for all of a batch, whose tail is within a relative tolerance."""
    tail = tails(values)
    return max(int((tail <= tol * tail[..., :1]).int().argmax(-1).max()), 1)


@check("Q3", "truncation does not keep more ranks than the tolerance asks for")
def not_over_ranked(s: Sample) -> Iterator[Measured]:
    subject = _subject(s, full=False)
    tensor = decaying(s)
    x, u, rows = _small_step(s, tensor)
    moved = spectra(s.manifold, subject.tensors(rows))
    for tol in _TOLERANCES:
        dense = spectra(s.manifold, tensor)
        for name, (manifold, _), known, slack in (
            ("approximate", s.manifold.approximate(tensor, tol=tol), dense, tol * _slack(s)),
            ("retr_adaptive", s.manifold.retr_adaptive(x, u, tol=tol), moved, _slack(s)),
        ):
            needed = tuple(_needed(values, tol - slack) for values in known)
            found = ranks_of(manifold)
            yield holds(f"ranks {found} of {name} for {needed}, tol={tol:g}", _covers(needed, found))


@check("Q4", "a tensor of lower rank is found exactly")
def exact(s: Sample) -> Iterator[Measured]:
    subject = _subject(s, full=False)
    ones = (1,) * len(ranks_of(s.manifold))
    for rank in (ones, ranks_of(s.manifold)):
        lower = LowRankSubject(s.manifold.with_rank(rank))
        sample = Sample(lower, s.batch, s.dtype, s.seed, 1.0, s.spectrum)
        rows = lower.dense(sample.x)
        if sample.space.condition > 1e-2 / s.tolerance():
            continue
        found, y = s.manifold.approximate(lower.tensors(rows))
        yield holds(f"approximate finds rank {ranks_of(found)} of {rank}", ranks_of(found) == rank)
        yield s.equal("approximate keeps the tensor", subject.rows(found.to_dense(y)), rows)
        inside = s.manifold.from_dense(lower.tensors(rows))
        yield s.equal("from_dense keeps the tensor", subject.dense(inside), rows)
        found, y = s.manifold.truncate(inside)
        yield holds(f"truncate finds rank {ranks_of(found)} of {rank}", ranks_of(found) == rank)
        yield s.equal("truncate keeps the tensor", subject.rows(found.to_dense(y)), rows)


@check("Q5", "truncation is idempotent, and monotone in the tolerance")
def idempotent_monotone(s: Sample) -> Iterator[Measured]:
    subject = _subject(s, full=True)
    x = subject.low_rank.from_dense(decaying(s))
    before = ranks_of(subject.low_rank)
    for tol in (0.0, *reversed(_TOLERANCES)):
        manifold, _ = subject.low_rank.truncate(x, tol=tol)
        ranks = ranks_of(manifold)
        yield holds(
            f"ranks {ranks} at tol={tol:g} after {before}",
            all(a <= b for a, b in zip(ranks, before, strict=True)),
        )
        before = ranks
    own = s.but(condition=1.0)
    rough = subject.tensors(own.subject.dense(own.x) + 1e-5 * own.vector())
    once, y = s.manifold.approximate(rough, tol=1e-3)
    twice, z = once.truncate(y, tol=1e-3)
    yield holds(f"ranks {ranks_of(twice)} after {ranks_of(once)}", twice == once)
    yield s.equal("the tensor stays", subject.rows(twice.to_dense(z)), subject.rows(once.to_dense(y)))


@check("Q6", "ranks stay within their limits")
def limits(s: Sample) -> Iterator[Measured]:
    subject = _subject(s, full=True)
    full, tensor = subject.low_rank, decaying(s)
    x = full.from_dense(tensor)
    u = 0.1 * Sample(subject, s.batch, s.dtype, s.seed).tangent(x)
    lowest = tuple(min(2, rank) for rank in ranks_of(full))
    # Every second rank is limited to 1, then every other one: limits of their own for each.
    uneven = (tuple(1 + k % 2 for k in range(len(lowest))), tuple(2 - k % 2 for k in range(len(lowest))))
    feasible = _feasible(s.manifold, lowest)
    operations: dict[str, Callable[..., tuple[LowRankManifold, torch.Tensor]]] = {
        "truncate": partial(full.truncate, x),
        "approximate": partial(s.manifold.approximate, tensor),
        "retr_adaptive": partial(full.retr_adaptive, x, u),
    }
    for name, operation in operations.items():
        kept, y = operation(tol=0.99, min_rank=lowest)
        found = ranks_of(kept)
        yield holds(f"ranks {found} of {name}, min_rank={lowest}", not feasible or _covers(found, lowest))
        yield on_manifold(Sample(LowRankSubject(kept), s.batch, s.dtype), f"{name}: the point is valid", y)
        for limit in (2, *uneven):
            found = ranks_of(operation(tol=0.0, max_rank=limit)[0])
            bounds = (limit,) * len(lowest) if isinstance(limit, int) else limit
            yield holds(f"ranks {found} of {name}, max_rank={limit}", _covers(bounds, found))
    none, z = full.truncate(torch.zeros_like(x), tol=0.1)
    yield holds(f"ranks {ranks_of(none)} of the zero tensor", _covers(ranks_of(none), (1,) * len(lowest)))
    yield s.zero("the zero tensor stays zero", subject.rows(none.to_dense(z)))


def _covers(large: tuple[int, ...], small: tuple[int, ...]) -> bool:
    return all(a >= b for a, b in zip(large, small, strict=True))


def _feasible(manifold: LowRankManifold, rank: tuple[int, ...]) -> bool:
    try:
        manifold.with_rank(rank)
    except ValueError:
        return False
    return True


@check("Q7", "growing and truncating by tolerance 0 is the identity")
def grow_and_truncate(s: Sample) -> Iterator[Measured]:
    subject = _subject(s, full=False)
    dense, u = subject.dense(s.x), s.tangent()
    safe = s.space.condition < 1e-2 / s.tolerance()
    same, y = s.manifold.retr_adaptive(s.x, torch.zeros_like(u))
    yield holds(f"rank {same.rank} after a step of zero", not safe or same == s.manifold)
    yield s.equal("the tensor after a step of zero", subject.rows(same.to_dense(y)), dense)
    grown, z = s.manifold.retr_adaptive(s.x, u)
    step = subject.tangent(s.x, u)
    # Rounding is that of the terms, which may cancel.
    unit = dense.norm(dim=-1, keepdim=True) + step.norm(dim=-1, keepdim=True)
    want = (dense + step) / unit
    yield s.equal("the grown point is x + u exactly", subject.rows(grown.to_dense(z)) / unit, want, scale=1.0)
    again, back = grown.truncate(z)
    yield holds(f"rank {again.rank} of {grown.rank}", not safe or again == grown)
    yield s.equal("truncated by 0 it stays", subject.rows(again.to_dense(back)) / unit, want, scale=1.0)


@check("Q8", "a change of rank keeps the tensor within the tolerance and the state tangent")
def change_of_rank(s: Sample) -> Iterator[Measured]:
    subject = _subject(s, full=False)
    s = s.but(condition=max(s.condition, 100.0), spectrum=Spectrum.DECAY)
    dense, v = subject.dense(s.x), s.tangent()
    tol, factor = 0.1, math.sqrt(len(ranks_of(s.manifold)))
    moves = {
        "truncate": s.manifold.truncate(s.x, tol=tol),
        "retr_adaptive": s.manifold.retr_adaptive(s.x, 0.1 * s.tangent(), tol=1e-4),
    }
    for name, (manifold, y) in moves.items():
        other = LowRankSubject(manifold)
        sample = Sample(other, s.batch, s.dtype, s.seed)
        yield holds(f"{name}: the batch shares its rank", y.shape == (*s.batch, manifold.size))
        yield on_manifold(sample, f"{name}: the point is valid", y)
        if name == "truncate":
            error = length(other.dense(y) - dense)
            yield s.at_most("the tensor after truncation", error, factor * tol * length(dense))
        carried = s.manifold.transp(s.x, y, v, target=manifold)
        squares = s.manifold.transp_squares(s.x, y, v.square(), target=manifold)
        yield holds(f"{name}: the carried squares fit the new rank", squares.shape == y.shape)
        yield s.at_most(f"{name}: the carried squares are not negative", -squares, torch.zeros_like(squares))
        yield from is_tangent(sample, f"{name}: the carried vector is tangent", y, carried)
        space = sample.space_at(y)
        condition = space.condition * s.space.condition
        if tolerance(s.dtype, s.subject.length, condition) < 0.1:
            want = space.project(subject.tangent(s.x, v))
            yield s.equal(
                f"{name}: the carried vector", other.tangent(y, carried), want, scale=1.0, condition=condition
            )
