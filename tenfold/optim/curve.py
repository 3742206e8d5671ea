"""The curve along which a line search looks: all parameters at once, each on its own manifold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import geoopt
import torch

from tenfold.manifolds import LowRankManifold

__all__ = ["SearchCurve", "Tangent", "inner", "manifold_of", "riemannian"]

Tangent: TypeAlias = list[torch.Tensor]
"""A tangent vector of the product manifold: one tensor per parameter, of the parameter's shape."""

_EUCLIDEAN = geoopt.Euclidean()


def manifold_of(parameter: torch.Tensor) -> geoopt.Manifold:
    """The manifold of a parameter; a plain one lives in Euclidean space."""
    return parameter.manifold if isinstance(parameter, geoopt.ManifoldParameter) else _EUCLIDEAN


def riemannian(parameters: Sequence[torch.Tensor]) -> Tangent:
    """Riemannian gradients from the ``.grad`` of parameters; zero where there is none."""
    return [
        torch.zeros_like(p) if p.grad is None else manifold_of(p).egrad2rgrad(p.detach(), p.grad)
        for p in parameters
    ]


def inner(parameters: Sequence[torch.Tensor], u: Tangent, v: Tangent) -> float:
    """Inner product on the product manifold, at the parameters: the sum over them. Synchronises once."""
    terms = [
        manifold_of(p).inner(p.detach(), a, b).sum().double()
        for p, a, b in zip(parameters, u, v, strict=True)
    ]
    return sum(term.to(terms[0].device) for term in terms).item() if terms else 0.0


class SearchCurve:
    r"""The curve :math:`a \mapsto R_x(a d)` and vector transport along it.

    Parameters
    ----------
    parameters : sequence of torch.Tensor
        The parameters, at ``x``. They are moved only by :meth:`move_to`.
    direction : list of torch.Tensor
        ``d``, one tangent vector per parameter.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], direction: Tangent):
        self.parameters, self.direction = parameters, direction
        self.start = [p.detach().clone() for p in parameters]
        self._frames: list[Any] = [
            m.frame(x) if isinstance(m, LowRankManifold) else None
            for m, x in zip(map(manifold_of, parameters), self.start, strict=True)
        ]

    def move_to(self, length: float) -> None:
        """Put the parameters at ``R_x(length d)``."""
        for p, y in zip(self.parameters, self._points(length), strict=True):
            p.copy_(y)

    def slope(self, length: float, gradient: Tangent) -> float:
        r"""Derivative of the loss along the curve, where the parameters and their gradients are now.

        It is the product of what autograd returned with the velocity of the packed points: a central
        difference of the retraction over 2 % of the length, without a further evaluation of the loss. Lifted
        manifolds return gradients in other coordinates; there the velocity is taken to be the transported
        direction.

        Parameters
        ----------
        length : float
            Where :meth:`move_to` put the parameters.
        gradient : list of torch.Tensor
            The Riemannian gradient there.
        """
        h = 0.01 * length
        ahead, behind = self._points(length + h), self._points(length - h)
        terms = []
        for p, x, d, g, y, z in zip(
            self.parameters, self.start, self.direction, gradient, ahead, behind, strict=True
        ):
            m = manifold_of(p)
            if m is _EUCLIDEAN:
                term = g * d
            elif getattr(m, "is_lifted", False):
                term = m.inner(p.detach(), g, m.transp(x, p.detach(), d))
            else:
                term = torch.zeros_like(p) if p.grad is None else p.grad * (y - z) / (2 * h)
            terms.append(term.sum().double())
        return sum(term.to(terms[0].device) for term in terms).item() if terms else 0.0

    def _points(self, length: float) -> Tangent:
        points = []
        for p, x, d, frame in zip(self.parameters, self.start, self.direction, self._frames, strict=True):
            known = {} if frame is None else {"frame": frame}
            points.append(manifold_of(p).retr(x, length * d, **known))
        return points

    def transport(self, length: float, vector: Tangent) -> Tangent:
        """Carry a tangent vector from ``x`` to where :meth:`move_to` put the parameters."""
        carried = []
        for p, x, d, v in zip(self.parameters, self.start, self.direction, vector, strict=True):
            m = manifold_of(p)
            if isinstance(m, LowRankManifold):
                carried.append(m.transp(x, p.detach(), v))
            else:
                carried.append(m.transp_follow_retr(x, length * d, v))
        return carried

    def back(self) -> None:
        """Put the parameters back to ``x``."""
        for p, x in zip(self.parameters, self.start, strict=True):
            p.copy_(x)
