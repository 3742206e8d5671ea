"""What the kit sees of a manifold: points, tangent vectors, and a dense embedding of both."""

from __future__ import annotations

import abc
import copy
import itertools
import math
from collections.abc import Callable

import geoopt
import torch

from tenfold.manifolds import LowRankManifold
from tenfold.testing.outcome import NotApplicable
from tenfold.testing.points import Spectrum, other_gauge, point_with
from tenfold.testing.tolerances import difference_step

__all__ = ["AmbientSubject", "LowRankSubject", "Subject", "subject_of"]

Embedding = Callable[[torch.Tensor], torch.Tensor]


class Subject(abc.ABC):
    """A manifold under test, embedded in a Euclidean space of vectors.

    Everything that the checks compare lives in that space, and its tangent spaces come from the
    derivative of the embedding alone: a manifold is never asked whether it is right about itself.

    Attributes
    ----------
    manifold : geoopt.Manifold
        The manifold.
    point_shape : tuple of int
        Shape of a point, without batch.
    length : int
        Dimension of the surrounding space.
    order : int or None
        The claimed order of the retraction, None if there is no claim.
    jacobian_error : float
        Relative error of :meth:`jacobian` beyond rounding.
    """

    manifold: geoopt.Manifold
    point_shape: tuple[int, ...]
    length: int
    order: int | None
    jacobian_error: float = 0.0

    @abc.abstractmethod
    def dense(self, x: torch.Tensor) -> torch.Tensor:
        """Points in the surrounding space: ``(*batch, *point_shape)`` to ``(*batch, length)``."""

    @abc.abstractmethod
    def tangent(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """Tangent vectors in the surrounding space: ``(*batch, *point_shape)`` to ``(*batch, length)``."""

    @abc.abstractmethod
    def project(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """The manifold's own projection of vectors of the surrounding space on the tangent space."""

    @abc.abstractmethod
    def jacobian(self, x: torch.Tensor) -> torch.Tensor:
        """A matrix whose columns span the tangent space, ``(*batch, length, any)``."""

    @abc.abstractmethod
    def point(
        self,
        generator: torch.Generator,
        batch: tuple[int, ...],
        dtype: torch.dtype,
        condition: float,
        spectrum: Spectrum,
    ) -> torch.Tensor:
        """Random points ``(*batch, *point_shape)``."""

    @abc.abstractmethod
    def random(self, generator: torch.Generator, batch: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The manifold's own random points ``(*batch, *point_shape)``."""

    def other_gauge(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The same points of the surrounding space, represented differently."""
        raise NotApplicable("a point has one representation only")

    def __str__(self) -> str:
        if self.manifold.name is None:  # geoopt's representation needs one
            return type(self.manifold).__name__
        return str(self.manifold)

    def at(self, dtype: torch.dtype) -> Subject:
        """The same subject for points of another type."""
        return self

    def flat(self, u: torch.Tensor) -> torch.Tensor:
        """Points or tangent vectors as rows ``(*batch, any)``."""
        return u.reshape(*u.shape[: u.ndim - len(self.point_shape)], -1)

    @property
    def low_rank(self) -> LowRankManifold | None:
        """The manifold, if it is a :class:`~tenfold.manifolds.LowRankManifold`."""
        return None


class LowRankSubject(Subject):
    """A low-rank manifold, seen through its dense tensors.

    Parameters
    ----------
    manifold : LowRankManifold
        The manifold.
    embed : callable or None
        Packed points to dense tensors, made of differentiable operations; None means
        ``manifold.to_dense``.
    order : int or None
        The claimed order of the retraction; None means what the manifold states.
    """

    def __init__(
        self, manifold: LowRankManifold, *, embed: Embedding | None = None, order: int | None = None
    ):
        self.manifold = manifold
        self.embed = manifold.to_dense if embed is None else embed
        self.has_own_embedding = embed is not None
        self.point_shape = (manifold.size,)
        self.length = manifold.dense_size
        self.order = getattr(manifold, "retraction_order", None) if order is None else order

    @property
    def low_rank(self) -> LowRankManifold:
        assert isinstance(self.manifold, LowRankManifold)
        return self.manifold

    def dense(self, x: torch.Tensor) -> torch.Tensor:
        return self.rows(self.embed(x))

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """Dense tensors ``(*batch, *shape)`` as rows ``(*batch, length)``."""
        return tensor.reshape(*tensor.shape[: tensor.ndim - len(self.low_rank.shape)], self.length)

    def tensors(self, rows: torch.Tensor) -> torch.Tensor:
        """Inverse of :meth:`rows`."""
        return rows.reshape(*rows.shape[:-1], *self.low_rank.shape)

    def tangent(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return self.rows(self.low_rank.tangent_to_dense(x, u))

    def project(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return self.low_rank.project_dense(x, self.tensors(z))

    def jacobian(self, x: torch.Tensor) -> torch.Tensor:
        batch, size = x.shape[:-1], x.shape[-1]
        directions = torch.eye(size).to(x).reshape(size, *(1,) * len(batch), size).expand(size, *batch, size)
        points = x.detach().expand(size, *batch, size).contiguous()
        columns = torch.func.jvp(self.dense, (points,), (directions.contiguous(),))[1]
        return columns.movedim(0, -1)

    def point(
        self,
        generator: torch.Generator,
        batch: tuple[int, ...],
        dtype: torch.dtype,
        condition: float,
        spectrum: Spectrum,
    ) -> torch.Tensor:
        return point_with(
            self.low_rank,
            generator=generator,
            batch=batch,
            dtype=dtype,
            condition=condition,
            spectrum=spectrum,
        )

    def random(self, generator: torch.Generator, batch: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return self.low_rank.random(*batch, *self.point_shape, dtype=dtype, generator=generator)

    def other_gauge(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return other_gauge(self.low_rank, x, generator)


class AmbientSubject(Subject):
    """A manifold whose points are their own embedding, as in geoopt: a sphere, a Stiefel manifold.

    Its tangent spaces are the ranges of the derivative of ``projx``, by central differences.

    Parameters
    ----------
    manifold : geoopt.Manifold
        The manifold, with real points.
    shape : tuple of int or None
        Shape of a point; None tries a few small ones.
    order : int or None
        The claimed order of the retraction.
    """

    def __init__(
        self, manifold: geoopt.Manifold, *, shape: tuple[int, ...] | None = None, order: int | None = None
    ):
        self.manifold = manifold
        self.point_shape = _fitting_shape(manifold) if shape is None else tuple(shape)
        self.length = math.prod(self.point_shape)
        self.order = order
        # Truncation and rounding of a central difference, with a factor for the third derivative.
        self.jacobian_error = 100 * difference_step(torch.float64) ** 2

    def at(self, dtype: torch.dtype) -> AmbientSubject:
        if next(itertools.chain(self.manifold.buffers(), self.manifold.parameters()), None) is None:
            return self
        manifold = copy.deepcopy(self.manifold).to(dtype)
        return AmbientSubject(manifold, shape=self.point_shape, order=self.order)

    def dense(self, x: torch.Tensor) -> torch.Tensor:
        return self.flat(x)

    def tangent(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return self.flat(u)

    def project(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return self.manifold.proju(x, z.reshape(*z.shape[:-1], *self.point_shape))

    def jacobian(self, x: torch.Tensor) -> torch.Tensor:
        batch = x.shape[: x.ndim - len(self.point_shape)]
        step = difference_step(x.dtype)
        moves = step * torch.eye(self.length).to(x)
        moves = moves.reshape(self.length, *(1,) * len(batch), *self.point_shape)
        ahead = self.manifold.projx((x + moves).contiguous())
        behind = self.manifold.projx((x - moves).contiguous())
        return self.flat(_plain(ahead - behind) / (2 * step)).movedim(0, -1)

    def point(
        self,
        generator: torch.Generator,
        batch: tuple[int, ...],
        dtype: torch.dtype,
        condition: float,
        spectrum: Spectrum,
    ) -> torch.Tensor:
        if spectrum is not Spectrum.DECAY:
            raise NotApplicable("points of this manifold have no singular values to prescribe")
        return self.random(generator, batch, dtype)

    def random(self, generator: torch.Generator, batch: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return random_point(self.manifold, (*batch, *self.point_shape), dtype, generator)


def random_point(
    manifold: geoopt.Manifold, size: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> torch.Tensor:
    """geoopt's ``random``, seeded; manifolds that have none project a normal tensor."""
    seed = int(torch.randint(2**31, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        try:
            return _plain(manifold.random(*size, dtype=dtype))
        except NotImplementedError:
            return _plain(manifold.projx(torch.randn(size, dtype=dtype)))


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Without the subclass that geoopt wraps around random points."""
    return tensor.detach().as_subclass(torch.Tensor)


def _fitting_shape(manifold: geoopt.Manifold) -> tuple[int, ...]:
    size = getattr(manifold, "n_elements", None)
    candidates = [(size,)] if isinstance(size, int) else [(5,), (5, 3), (3, 3)]
    for shape in candidates:
        if len(shape) == manifold.ndim and manifold.check_point(torch.zeros(shape)):
            try:
                point = random_point(manifold, shape, torch.get_default_dtype(), torch.Generator())
            except (ValueError, RuntimeError, AssertionError):
                continue
            if point.shape == shape and manifold.check_point_on_manifold(point):
                return shape
    raise ValueError(f"the shape of a point of {manifold} is needed (shape=...), none of {candidates} fits")


def subject_of(
    manifold: geoopt.Manifold,
    *,
    shape: tuple[int, ...] | None = None,
    embed: Embedding | None = None,
    order: int | None = None,
) -> Subject:
    """The view of a manifold that fits its kind.

    Parameters
    ----------
    manifold : geoopt.Manifold
        The manifold under test.
    shape : tuple of int or None
        Shape of a point; for manifolds that do not know it themselves.
    embed : callable or None
        The dense embedding of a low-rank manifold, if not its own.
    order : int or None
        The claimed order of its retraction, if it does not state one.

    Raises
    ------
    TypeError
        If it is not a ``geoopt.Manifold``.
    ValueError
        If an argument does not apply to this kind of manifold, or a shape is needed.
    """
    if not isinstance(manifold, geoopt.Manifold):
        raise TypeError(f"a geoopt.Manifold is needed, got {manifold!r} of type {type(manifold).__name__}")
    if order is not None and order not in (1, 2):
        raise ValueError(f"the order of a retraction is 1 or 2, got {order}")
    if isinstance(manifold, LowRankManifold):
        if shape is not None and tuple(shape) != (manifold.size,):
            raise ValueError(f"a point of {manifold} has the shape {(manifold.size,)}, got shape={shape}")
        return LowRankSubject(manifold, embed=embed, order=order)
    if embed is not None:
        raise ValueError(f"the points of {manifold} are their own embedding: embed must be None")
    return AmbientSubject(manifold, shape=shape, order=order)
