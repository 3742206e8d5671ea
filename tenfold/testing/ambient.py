"""Manifolds whose points are their own dense embedding."""

from __future__ import annotations

import copy
import itertools
import math

import geoopt
import torch

from tenfold.testing.outcome import NotApplicable
from tenfold.testing.points import Spectrum
from tenfold.testing.subject import Subject
from tenfold.testing.tolerances import difference_step

__all__ = ["AmbientSubject", "random_point"]


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
                dtype = manifold.dtype or torch.get_default_dtype()
                point = random_point(manifold, shape, dtype, torch.Generator())
            except (ValueError, RuntimeError, AssertionError):
                continue
            if point.shape == shape and manifold.check_point_on_manifold(point):
                return shape
    raise ValueError(f"the shape of a point of {manifold} is needed (shape=...), none of {candidates} fits")
