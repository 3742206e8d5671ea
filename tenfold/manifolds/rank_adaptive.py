"""What a low-rank format can do as soon as it knows how to truncate."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from tenfold.manifolds.packed import PackedManifold
from tenfold.manifolds.truncation import RankBound, Truncation

if TYPE_CHECKING:
    from tenfold.manifolds.base import LowRankManifold

__all__ = ["RankAdaptiveManifold"]


class RankAdaptiveManifold(PackedManifold):
    """Tensors that are approximated by others of lower rank.

    The part of :class:`LowRankManifold` that changes ranks.
    """

    @abc.abstractmethod
    def with_rank(self, rank: Any) -> LowRankManifold:
        """The manifold of the same shape and format at another rank.

        Raises
        ------
        ValueError
            If no tensor of this shape has that rank.
        """

    def size_at(self, ranks: Sequence[int]) -> int:
        """Stored numbers at other ranks, one for each of a truncation's spectra.

        Policies ask for thousands of sizes, so that a format may have a cheaper way to them.

        Parameters
        ----------
        ranks : sequence of int
            Positive; a format may lower them to what is feasible.
        """
        return self.with_rank(tuple(ranks)).size

    @property
    @abc.abstractmethod
    def full_rank(self) -> Any:
        """The rank at which every tensor of this shape is represented."""

    @abc.abstractmethod
    def truncation(self, x: torch.Tensor, u: torch.Tensor | None = None, *, frame: Any = None) -> Truncation:
        """The spectra of the tensor ``x`` (or of ``x + u``, exactly), ready to be truncated.

        Parameters
        ----------
        x : torch.Tensor
            Point, shape ``(*batch, size)``.
        u : torch.Tensor or None
            Tangent vector at ``x``; the sum has up to twice the rank.
        frame
            ``self.frame(x)``, if it is known.
        """

    @abc.abstractmethod
    def _exact(self, tensor: torch.Tensor) -> tuple[LowRankManifold, torch.Tensor]:
        """A dense tensor in this format at a rank that loses nothing."""

    def singular_values(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Singular values of the matricisations that the ranks belong to, descending.

        Returns
        -------
        tuple of torch.Tensor
            One per rank, shape ``(*batch, rank)``.
        """
        return self.truncation(x).singular_values

    def truncate(
        self,
        x: torch.Tensor,
        *,
        tol: float = 0.0,
        min_rank: RankBound = None,
        max_rank: RankBound = None,
    ) -> tuple[LowRankManifold, torch.Tensor]:
        """Truncate a point by tolerance.

        Parameters
        ----------
        x : torch.Tensor
            Point, shape ``(*batch, size)``; a batch shares its ranks.
        tol : float
            Relative tolerance in [0, 1) for each rank by itself; the relative error of the
            tensor is at most ``tol`` times the root of the number of ranks.
        min_rank, max_rank : int, sequence of int or None
            Limits on the ranks.

        Returns
        -------
        manifold : LowRankManifold
            The manifold at the new rank.
        point : torch.Tensor
            Shape ``(*batch, manifold.size)``.

        Raises
        ------
        ValueError
            If ``tol`` is outside [0, 1) or a limit makes no sense.
        """
        return self.truncation(x).by_tolerance(tol, min_rank=min_rank, max_rank=max_rank)

    def retr_adaptive(
        self,
        x: torch.Tensor,
        u: torch.Tensor,
        *,
        tol: float = 0.0,
        min_rank: RankBound = None,
        max_rank: RankBound = None,
    ) -> tuple[LowRankManifold, torch.Tensor]:
        """Rank-adaptive retraction: ``x + u`` truncated by tolerance.

        Ranks may grow (up to twice) and shrink in the same step. Arguments and results as in
        :meth:`truncate`.
        """
        return self.truncation(x, u).by_tolerance(tol, min_rank=min_rank, max_rank=max_rank)

    def from_dense(self, tensor: torch.Tensor) -> torch.Tensor:
        """Quasi-optimal approximation of a dense tensor at this manifold's rank.

        Parameters
        ----------
        tensor : torch.Tensor
            Shape ``(*batch, *shape)``.

        Returns
        -------
        torch.Tensor
            Point, shape ``(*batch, size)``. Its error is at most the root of the number of
            ranks times that of the best approximation.

        Raises
        ------
        ValueError
            If the shape does not fit.
        """
        self._check_dense(tensor)
        manifold, x = self._exact(tensor)
        return manifold.truncation(x).to(self.rank)[1]

    def approximate(
        self,
        tensor: torch.Tensor,
        *,
        tol: float = 0.0,
        min_rank: RankBound = None,
        max_rank: RankBound = None,
    ) -> tuple[LowRankManifold, torch.Tensor]:
        """Approximate a dense tensor by tolerance; this manifold's own rank plays no part.

        Arguments, results and error bound as in :meth:`truncate`.
        """
        self._check_dense(tensor)
        manifold, x = self._exact(tensor)
        return manifold.truncate(x, tol=tol, min_rank=min_rank, max_rank=max_rank)
