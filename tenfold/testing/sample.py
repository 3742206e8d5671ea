"""One example of a check: a batch of points of one manifold, everything else drawn from its seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from tenfold.manifolds import LowRankManifold
from tenfold.testing.oracle import TangentSpace, tangent_space
from tenfold.testing.outcome import Measured, NotApplicable
from tenfold.testing.points import Spectrum
from tenfold.testing.subject import LowRankSubject, Subject
from tenfold.testing.tolerances import tolerance

__all__ = ["Sample"]

_POINTS_STREAM = 1 << 31
"""Added to the seed where points are drawn, so that what checks draw later is independent of them."""


@dataclass
class _Drawn:
    """What all checks of an example share: its points and the tangent space there."""

    x: torch.Tensor | None = None
    space: TangentSpace | None = None


@dataclass(frozen=True)
class Sample:
    """A batch of points of one manifold, and what checks need at them.

    The numbers follow from the fields alone. Points and their tangent spaces are computed once for a sample
    and all that come from it by :meth:`fresh` and :meth:`but`, whichever check asks first.

    Attributes
    ----------
    subject : Subject
        The manifold under test.
    batch : tuple of int
        Leading dimensions of the points.
    dtype : torch.dtype
        float32 or float64.
    seed : int
        Seed of all numbers.
    condition : float
        Condition number of the points where it can be prescribed.
    spectrum : Spectrum
        Distribution of their singular values.
    """

    subject: Subject
    batch: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float64
    seed: int = 0
    condition: float = 1.0
    spectrum: Spectrum = Spectrum.DECAY
    _drawn: dict[tuple[object, ...], _Drawn] = field(default_factory=dict, repr=False, compare=False)

    @property
    def key(self) -> tuple[object, ...]:
        """What makes two samples the same."""
        return self.manifold, self.batch, self.dtype, self.seed, self.condition, self.spectrum

    def fresh(self) -> Sample:
        """The same sample for another check: what a check draws does not depend on those before it."""
        return replace(self)

    def but(
        self,
        *,
        dtype: torch.dtype | None = None,
        condition: float | None = None,
        spectrum: Spectrum | None = None,
        batch: tuple[int, ...] | None = None,
    ) -> Sample:
        """The same sample with something changed."""
        return replace(
            self,
            subject=self.subject if dtype is None else self.subject.at(dtype),
            dtype=self.dtype if dtype is None else dtype,
            condition=self.condition if condition is None else condition,
            spectrum=self.spectrum if spectrum is None else spectrum,
            batch=self.batch if batch is None else batch,
        )

    def __str__(self) -> str:
        return (
            f"{self.subject}, batch={self.batch}, {str(self.dtype).removeprefix('torch.')}, "
            f"seed={self.seed}, condition={self.condition:g}, spectrum={self.spectrum}"
        )

    # What may be asked of the manifold -----------------------------------------------------------

    @property
    def manifold(self) -> LowRankManifold:
        """The manifold; typed as a low-rank one, whose vocabulary contains geoopt's."""
        return self.subject.manifold

    def low_rank(self, reason: str) -> LowRankSubject:
        """The subject, if it is a low-rank manifold; else the check does not apply for ``reason``."""
        if not isinstance(self.subject, LowRankSubject):
            raise NotApplicable(reason)
        return self.subject

    def needs_frobenius(self) -> None:
        """Refuse manifolds whose metric is not that of the surrounding space."""
        if isinstance(self.subject, LowRankSubject):
            return
        u, v = self.tangent(), self.tangent()
        got = self.inner(self.x, u, v)
        want = (self.subject.flat(u) * self.subject.flat(v)).sum(-1)
        if float((got - want).abs().max()) > tolerance(self.dtype, self.subject.length):
            raise NotApplicable("its metric is not the Frobenius product of the surrounding space")

    # Drawn things --------------------------------------------------------------------------------

    @property
    def _shared(self) -> _Drawn:
        return self._drawn.setdefault((self.batch, self.dtype, self.condition, self.spectrum), _Drawn())

    @cached_property
    def generator(self) -> torch.Generator:
        """The source of all numbers of this sample but its points."""
        return torch.Generator().manual_seed(self.seed)

    @cached_property
    def x(self) -> torch.Tensor:
        """The points, ``(*batch, *point_shape)``; a copy of its own for every sample."""
        shared = self._shared
        if shared.x is None:
            shared.x = self._points(torch.Generator().manual_seed(_POINTS_STREAM + self.seed))
        return shared.x.clone()

    def point(self) -> torch.Tensor:
        """Other points of the same kind."""
        return self._points(self.generator)

    def _points(self, generator: torch.Generator) -> torch.Tensor:
        return self.subject.point(generator, self.batch, self.dtype, self.condition, self.spectrum)

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal numbers, ``(*batch, *shape)``."""
        return torch.randn(*self.batch, *shape, dtype=self.dtype, generator=self.generator)

    def vector(self) -> torch.Tensor:
        """A random vector of the surrounding space, of length 1, ``(*batch, length)``."""
        return _unit(self.normal(self.subject.length))

    def tangent(self, x: torch.Tensor | None = None) -> torch.Tensor:
        """A random tangent vector at ``x`` (default: the points), of coordinate length 1."""
        x = self.x if x is None else x
        u = self.manifold.proju(x, self.normal(*self.subject.point_shape))
        length = torch.linalg.vector_norm(self.subject.flat(u), dim=-1)
        length = torch.where(length > 0, length, torch.ones_like(length))
        unit = u / length.reshape(*length.shape, *(1,) * len(self.subject.point_shape))
        # Next to a normal vector the projection is short and its rounding is not: twice is enough.
        return self.manifold.proju(x, unit)

    def inner(self, x: torch.Tensor, u: torch.Tensor, v: torch.Tensor | None = None) -> torch.Tensor:
        """The metric, one number per member of the batch.

        Read from ``keepdim=True``; that the other form agrees is the matter of the checks M1 and M3.
        """
        product = self.manifold.inner(x, u, v, keepdim=True)
        return product.reshape(product.shape[: product.ndim - len(self.subject.point_shape)])

    # The oracle ----------------------------------------------------------------------------------

    @property
    def space(self) -> TangentSpace:
        """The tangent space at the points, from the embedding alone, in float64.

        Checks that need one do not apply to tensors of lower rank.
        """
        if self.spectrum is Spectrum.ZERO:
            raise NotApplicable("tensors of lower rank are not on the manifold and have no tangent space")
        shared = self._shared
        if shared.space is None:
            shared.space = self.space_at(self.x)
        return shared.space

    def space_at(self, x: torch.Tensor) -> TangentSpace:
        """The tangent space at other points."""
        return tangent_space(self.subject.at(torch.float64), x)

    @property
    def reach(self) -> float:
        """Length of a tangent vector up to which retractions are expected to be smooth."""
        return 1.0 / self.space.condition

    # Statements ----------------------------------------------------------------------------------

    def tolerance(self, condition: float = 1.0) -> float:
        """Relative rounding error of an operation on these points."""
        return tolerance(self.dtype, self.subject.length, condition)

    def equal(
        self,
        what: str,
        got: torch.Tensor,
        want: torch.Tensor,
        *,
        scale: float | None = None,
        condition: float = 1.0,
        against: TangentSpace | None = None,
    ) -> Measured:
        """``got = want`` row by row, relative to ``scale`` (default: the length of ``want``).

        A comparison ``against`` a tangent space of the oracle allows for its condition and error.
        """
        got, want = torch.broadcast_tensors(got.double(), want.double())
        error = torch.linalg.vector_norm(got - want, dim=-1)
        if scale is None:
            length = torch.linalg.vector_norm(want, dim=-1)
            error = error / torch.where(length > 0, length, torch.ones_like(length))
        else:
            error = error / scale
        return Measured(what, worst(error), self._bound(condition, against))

    def _bound(self, condition: float, against: TangentSpace | None) -> float:
        if against is None:
            return self.tolerance(condition)
        return self.tolerance(condition * against.condition) + against.error

    def same_points(
        self, what: str, got: torch.Tensor, want: torch.Tensor, *, condition: float = 1.0
    ) -> Measured:
        """Two points or tangent vectors agree as they are stored."""
        return self.equal(what, self.subject.flat(got), self.subject.flat(want), condition=condition)

    def zero(
        self,
        what: str,
        value: torch.Tensor,
        *,
        scale: float = 1.0,
        condition: float = 1.0,
        against: TangentSpace | None = None,
    ) -> Measured:
        """Rows are zero, relative to ``scale``."""
        nothing = torch.zeros_like(value)
        return self.equal(what, value, nothing, scale=scale, condition=condition, against=against)

    def at_most(
        self,
        what: str,
        left: torch.Tensor,
        right: torch.Tensor,
        *,
        scale: float = 1.0,
        condition: float = 1.0,
    ) -> Measured:
        """``left <= right`` entry by entry, up to rounding relative to ``scale``."""
        excess = ((left.double() - right.double()) / scale).clamp(min=0.0)
        return Measured(what, worst(excess), self.tolerance(condition))


def holds(what: str, statement: bool) -> Measured:
    """A statement without a number: its error is 0 or infinite."""
    return Measured(what, 0.0 if statement else math.inf, 0.0)


def refuses(what: str, action: Callable[[], object]) -> Measured:
    """``action`` raises ValueError with a message."""
    try:
        action()
    except ValueError as error:
        return holds(f"{what}, with a message", bool(str(error)))
    return holds(what, False)


def finite(what: str, *tensors: torch.Tensor) -> Measured:
    """No NaN and no infinity."""
    return holds(what, all(bool(torch.isfinite(tensor).all()) for tensor in tensors))


def worst(errors: torch.Tensor) -> float:
    """The largest of non-negative errors; NaN if any is."""
    return float(errors.max()) if errors.numel() else 0.0


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
