"""A test case to inherit: give it manifolds, and it has every check of the kit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import geoopt
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tenfold.testing.check import CHECKS
from tenfold.testing.outcome import CheckResult, Status
from tenfold.testing.sample import Sample
from tenfold.testing.strategies import samples

__all__ = ["LowRankManifoldTestCase"]


class LowRankManifoldTestCase:
    """Every check of the kit as a test, on examples that hypothesis draws.

    An example is one manifold (format, shape, ranks) and one batch of points on it, with their type,
    conditioning and seed. Examples are drawn once for a class and shared by its checks. Where a check fails,
    hypothesis looks for the smallest example on which it does.

    Subclass it in a test module, name the class ``Test...`` and set ``manifolds``; pytest finds the
    method :meth:`test_property`, once per check. A check that applies to none of the examples is skipped
    with its reason.

    Attributes
    ----------
    manifolds : hypothesis strategy or sequence of geoopt.Manifold
        The manifolds under test; required.
    examples : int
        Examples per check, not counting those to which it does not apply; a quarter more are drawn to make
        up for these. Each is a batch of points, by default of three on average.
    batches, dtypes : sequence
        What examples choose from; see :func:`tenfold.testing.strategies.samples`.
    order : int or None
        Claimed order of the retraction, if the manifolds do not state it.
    checks : collection of str
        Ids of the checks to run; all of them by default.
    exempt : mapping of str to str
        Ids of checks that the manifolds are known to fail, with the reason; they are skipped.
    reproducible : bool
        Whether hypothesis draws the same examples in every run.

    Examples
    --------
    >>> from tenfold.manifolds import TuckerManifold
    >>> from tenfold.testing import LowRankManifoldTestCase
    >>> class TestMine(LowRankManifoldTestCase):
    ...     manifolds = [TuckerManifold((4, 3, 2), rank=2)]
    ...     def to_dense(self, manifold, x):
    ...         core, *factors = manifold.unpack_tensor(x)
    ...         return torch.einsum("...abc,...ia,...jb,...kc->...ijk", core, *factors)
    """

    manifolds: ClassVar[st.SearchStrategy[Any] | Sequence[geoopt.Manifold]]
    examples: ClassVar[int] = 25
    batches: ClassVar[Sequence[tuple[int, ...]]] = ((3,), (), (1,), (2, 2), (5,))
    dtypes: ClassVar[Sequence[torch.dtype]] = (torch.float64, torch.float32)
    order: ClassVar[int | None] = None
    checks: ClassVar[Collection[str]] = tuple(CHECKS)
    exempt: ClassVar[Mapping[str, str]] = {}
    reproducible: ClassVar[bool] = True

    def to_dense(self, manifold: geoopt.Manifold, x: torch.Tensor) -> torch.Tensor:
        """The dense embedding of packed points; override it by one of your own to have ``to_dense`` checked.

        Parameters
        ----------
        manifold : geoopt.Manifold
            A low-rank manifold under test.
        x : torch.Tensor
            Shape ``(*batch, size)``.

        Returns
        -------
        torch.Tensor
            Shape ``(*batch, *shape)``, made of differentiable operations.
        """
        return manifold.to_dense(x)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test per check.

        Raises
        ------
        ValueError
            If ``checks`` or ``exempt`` names a check that there is not.
        """
        unknown = [id for id in (*self.checks, *self.exempt) if id not in CHECKS]
        if unknown:
            raise ValueError(f"unknown checks {unknown}; there are {list(CHECKS)}")
        if "id" in metafunc.fixturenames:
            metafunc.parametrize("id", [id for id in CHECKS if id in self.checks])

    def test_property(self, id: str) -> None:
        """One check on ``examples`` examples that it applies to."""
        if id in self.exempt:
            pytest.skip(self.exempt[id])
        measured, reason = self.measure(id)
        if not measured:
            pytest.skip(reason)

    def measure(self, id: str) -> tuple[list[Sample], str]:
        """Run one check.

        Parameters
        ----------
        id : str
            The check.

        Returns
        -------
        measured : list of Sample
            The examples on which it held, at most ``examples``.
        reason : str
            Why it did not apply to the others.

        Raises
        ------
        AssertionError
            With a smaller example, if hypothesis finds one, when the check fails.
        """
        measured: list[Sample] = []
        reasons: set[str] = set()
        for sample in _drawn(type(self)):
            if len(measured) == self.examples:
                break
            result = CHECKS[id].on(sample.fresh())
            if result.status is Status.FAILED:
                self._on_examples(lambda sample: _holds(CHECKS[id].on(sample)))  # to make it smaller
                _holds(result)
            if result.status is Status.PASSED:
                measured.append(sample)
            else:
                reasons.add(result.reason)
        return measured, min(reasons, default="no example was drawn")

    def _on_examples(self, action: Callable[[Sample], object]) -> None:
        """Let hypothesis draw examples, some more than are wanted: a check may not apply to all."""

        @settings(
            max_examples=self.examples + self.examples // 4,
            deadline=None,
            database=None,
            derandomize=self.reproducible,
            suppress_health_check=list(HealthCheck),
        )
        @given(sample=self._samples())
        def run(sample: Sample) -> None:
            action(sample)

        run()

    def _samples(self) -> st.SearchStrategy[Sample]:
        manifolds = self.manifolds
        if not isinstance(manifolds, st.SearchStrategy):
            manifolds = st.sampled_from(list(manifolds))
        return samples(
            manifolds, batches=self.batches, dtypes=self.dtypes, embed=self._embedding(), order=self.order
        )

    def _embedding(self) -> Callable[[geoopt.Manifold], Callable[[torch.Tensor], torch.Tensor]] | None:
        if type(self).to_dense is LowRankManifoldTestCase.to_dense:
            return None
        return lambda manifold: functools.partial(self.to_dense, manifold)


def _drawn(case: type[LowRankManifoldTestCase]) -> list[Sample]:
    """The examples of a test case, all different: its checks share them, with points and tangent spaces."""
    if case not in _EXAMPLES:
        samples: dict[object, Sample] = {}

        def add(sample: Sample) -> None:
            assume(sample.key not in samples)  # hypothesis likes to repeat itself
            samples[sample.key] = sample

        case()._on_examples(add)
        _EXAMPLES.clear()  # of the class before
        _EXAMPLES[case] = list(samples.values())
    return _EXAMPLES[case]


_EXAMPLES: dict[type[LowRankManifoldTestCase], list[Sample]] = {}


def _holds(result: CheckResult) -> None:
    assert result.status is not Status.FAILED, f"{result.id}, {result.title}: {result.reason}"
