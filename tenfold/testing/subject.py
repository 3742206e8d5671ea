"""What the kit sees of a manifold: points, tangent vectors, and a dense embedding of both."""

from __future__ import annotations

import abc
from collections.abc import Callable

import geoopt
import torch

from tenfold.manifolds import LowRankManifold
from tenfold.testing.outcome import NotApplicable
from tenfold.testing.points import Spectrum, other_gauge, point_with

__all__ = ["Embedding", "LowRankSubject", "Subject"]

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
