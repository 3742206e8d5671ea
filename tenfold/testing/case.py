"""A test case to inherit: give it manifolds, and it has every check of the kit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import geoopt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenfold.testing.check import CHECKS
from tenfold.testing.outcome import Status
from tenfold.testing.sample import Sample
from tenfold.testing.strategies import samples

__all__ = ["LowRankManifoldTestCase"]


class LowRankManifoldTestCase:
    """Every check of the kit as a test, on examples that hypothesis draws.

    Subclass it in a test module, name the class ``Test...`` and set ``manifolds``; pytest finds the
    method :meth:`test_property`, once per check. A check that applies to none of the examples is skipped
    with its reason.

    Attributes
    ----------
    manifolds : hypothesis strategy or sequence of geoopt.Manifold
        The manifolds under test; required.
    examples : int
        Examples per check. Each is a batch of points, by default of seven on average.
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
    batches: ClassVar[Sequence[tuple[int, ...]]] = ((8,), (), (1,), (2, 4), (12,))
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
        """One test per check."""
        if "id" in metafunc.fixturenames:
            metafunc.parametrize("id", [id for id in CHECKS if id in self.checks])

    def test_property(self, id: str) -> None:
        """One check on all examples."""
        if id in self.exempt:
            pytest.skip(self.exempt[id])
        reasons, measured = set(), 0

        @settings(
            max_examples=self.examples,
            deadline=None,
            database=None,
            derandomize=self.reproducible,
            suppress_health_check=list(HealthCheck),
        )
        @given(sample=self._samples())
        def run(sample: Sample) -> None:
            nonlocal measured
            result = CHECKS[id].on(sample)
            if result.status is Status.NOT_APPLICABLE:
                reasons.add(result.reason)
                return
            measured += 1
            assert result.status is Status.PASSED, f"{id}, {result.title}: {result.reason}"

        run()
        if not measured:
            pytest.skip(min(reasons, default="no example was drawn"))

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
