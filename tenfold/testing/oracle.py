"""Tangent spaces from the dense embedding alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tenfold.linalg import svd
from tenfold.testing.outcome import NotApplicable
from tenfold.testing.subject import Subject
from tenfold.testing.tolerances import tolerance

__all__ = ["ORACLE_LIMIT", "TangentSpace", "tangent_space"]

ORACLE_LIMIT = 4_000_000
"""Numbers that the dense oracle may hold at most; checks that need more do not apply."""


@dataclass(frozen=True)
class TangentSpace:
    """The tangent spaces at a batch of points.

    Attributes
    ----------
    basis : torch.Tensor
        Orthonormal columns, ``(*batch, length, dim)``, float64.
    dim : int
        The numerical rank of the embedding's derivative; the largest of the batch.
    smallest_dim : int
        The smallest of the batch: where it differs, some points are singular.
    condition : float
        Ratio of the largest to the smallest non-zero singular value of the derivative, the largest of
        the batch: how strongly the tangent space reacts to a perturbation of the point.
    error : float
        Error of the basis beyond rounding: zero for exact derivatives.
    """

    basis: torch.Tensor
    dim: int
    smallest_dim: int
    condition: float
    error: float

    def project(self, z: torch.Tensor) -> torch.Tensor:
        """Orthogonal projection of vectors ``(..., *batch, length)``, float64."""
        return (self.basis @ (self.basis.mT @ z.double().unsqueeze(-1))).squeeze(-1)

    def normal(self, z: torch.Tensor) -> torch.Tensor:
        """What the projection takes away."""
        return z.double() - self.project(z)

    def coefficients(self, z: torch.Tensor) -> torch.Tensor:
        """Products with the basis, ``(..., *batch, dim)``."""
        return (self.basis.mT @ z.double().unsqueeze(-1)).squeeze(-1)


def tangent_space(subject: Subject, x: torch.Tensor) -> TangentSpace:
    """The tangent spaces at ``x`` by an SVD of the derivative of the embedding, in float64.

    Parameters
    ----------
    subject : Subject
        The manifold, for float64.
    x : torch.Tensor
        Points ``(*batch, *point_shape)`` of any type.

    Raises
    ------
    NotApplicable
        If the derivative would hold more than :data:`ORACLE_LIMIT` numbers.
    """
    count = max(x.numel(), 1) * subject.length
    if count > ORACLE_LIMIT:
        raise NotApplicable(
            f"the dense oracle would hold {count} numbers, at most {ORACLE_LIMIT} are allowed: "
            "check a smaller manifold"
        )
    jacobian = subject.jacobian(x.detach().double())
    u, s, _ = svd(jacobian)
    noise = tolerance(torch.float64, subject.length) + subject.jacobian_error
    ranks = (s > noise * s[..., :1]).sum(-1)
    dim, smallest = (int(ranks.max()), int(ranks.min())) if ranks.numel() else (0, 0)
    ratios = s[..., 0] / s[..., max(smallest - 1, 0)] if s.shape[-1] else s.new_ones(())
    condition = float(ratios.max()) if smallest else 1.0
    return TangentSpace(u[..., :dim], dim, smallest, condition, subject.jacobian_error)
