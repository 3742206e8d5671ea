"""The contract that every low-rank tensor format fulfils."""

from __future__ import annotations

import abc
from typing import Any

import geoopt
import torch

from tenfold.manifolds.rank_adaptive import RankAdaptiveManifold

__all__ = ["LowRankManifold"]


class LowRankManifold(RankAdaptiveManifold):
    r"""Tensors of fixed rank in some format, as a Riemannian submanifold of the dense tensors.

    **Points** are packed vectors: the factors of the format, flattened and concatenated in the
    order of ``factor_shapes``; leading dimensions are batch. :meth:`unpack_tensor` gives views
    of the factors, :meth:`pack_point` is its inverse.

    **Tangent vectors** are packed vectors of the same layout in *isometric coordinates*: the
    Frobenius product of two tangent tensors is the dot product of their coordinates.

    **Gradients**: :meth:`egrad2rgrad` takes what autograd returns for the packed point, provided
    that the loss depends on the factors through the tensor alone.

    **Precision** is that of the arguments, but not inside of ``torch.autocast``: products in half precision
    lose digits, and decompositions refuse them. Call all but :meth:`to_dense` outside of it, or inside of
    ``torch.autocast(device_type, enabled=False)``, as the optimizers do.

    The metric is the Euclidean one, so a manifold is determined by its projections. A new format
    implements the abstract methods; what is defined here holds for all of them.

    Parameters
    ----------
    shape : tuple of int
        Shape of the dense tensor.
    rank
        Rank in the format's own terms.

    Attributes
    ----------
    shape : tuple of int
        Shape of the dense tensor.
    rank
        Rank in the format's own terms, hashable.
    factor_shapes : tuple of tuple of int
        Shapes of the factors in the order in which they are packed.
    size : int
        Length of a packed point.
    dense_size : int
        Number of entries of the dense tensor.
    retraction_order : int
        2 if :meth:`retr` is promised to agree with the exponential map to second order, else 1.
    """

    name = "low-rank"
    retraction_order = 1

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Dimension of the manifold."""

    # Points ----------------------------------------------------------------------------------

    @abc.abstractmethod
    def projx(self, x: torch.Tensor) -> torch.Tensor:
        """The canonical point that represents the same tensor as the factors in ``x``.

        Identity (up to rounding) where ``x`` is canonical already; the tensor never changes.
        """

    @abc.abstractmethod
    def random(
        self,
        *size: int | tuple[int, ...],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """A random point: Haar-distributed orthonormal factors, standard normal core.

        Parameters
        ----------
        *size : int or tuple of int
            Shape of the result, ``(*batch, self.size)``; nothing means one point.
        dtype, device
            As for :func:`torch.randn`.
        generator : torch.Generator or None
            Source of the numbers.

        Raises
        ------
        ValueError
            If the last number is not ``size``.
        TypeError
            If the type is not a real floating one.
        """

    def origin(
        self,
        *size: int | tuple[int, ...],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int | None = 42,
    ) -> torch.Tensor:
        """A reproducible point: :meth:`random` drawn on the CPU with ``seed``, then moved.

        The default device is that of new tensors, also inside of ``with torch.device(...)``.
        """
        generator = torch.Generator("cpu").manual_seed(42 if seed is None else seed)
        flat = geoopt.utils.size2shape(*size) if size else ()
        x = self.random(*flat, dtype=dtype, device="cpu", generator=generator)
        return x.to(torch.get_default_device() if device is None else device)

    @abc.abstractmethod
    def to_dense(self, x: torch.Tensor) -> torch.Tensor:
        """The dense tensor of a point, shape ``(*batch, *shape)``; differentiable."""

    @abc.abstractmethod
    def radial(self, x: torch.Tensor) -> torch.Tensor:
        """The point itself as a tangent vector (the manifold is a cone), shape ``(*batch, size)``."""

    # Tangent space ---------------------------------------------------------------------------

    def tangent_matrices(self, u: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The blocks of a tangent vector as matrices, for steps that look at their singular values.

        Parameters
        ----------
        u : torch.Tensor
            Tangent vector in isometric coordinates, shape ``(*batch, size)``.

        Returns
        -------
        tuple of torch.Tensor
            One view per factor, shape ``(*batch, m, n)``, with the last axis of the factor as columns: a
            change of the basis in the columns multiplies from the right.
        """
        lead = u.ndim - 1
        return tuple(
            block.flatten(lead, -2) if block.ndim > lead + 1 else block.unsqueeze(-1)
            for block in self.unpack_tensor(u)
        )

    def frame(self, x: torch.Tensor) -> Any:
        """What the operations at ``x`` share, to be passed to them as ``frame``; opaque.

        Computing it once per step instead of once per operation saves time only. Every format takes it in
        :meth:`egrad2rgrad` and :meth:`retr`; None, where there is nothing to share, is not passed on to the
        others. A format with a frame takes it in :meth:`retr_transp`, :meth:`transp`,
        :meth:`transp_squares`, :meth:`truncation` and :meth:`undamped`, too, and the frame at the other point
        of a transport as ``target_frame``.
        """
        return None

    def gradient_conditioning(self, frame: Any) -> torch.Tensor | None:
        """Bound on what :meth:`egrad2rgrad` divides by: an estimate of the reciprocal condition number.

        The relative error of the gradient is about the unit roundoff divided by it.

        Parameters
        ----------
        frame
            What :meth:`frame` or :meth:`damped_frame` returned.

        Returns
        -------
        torch.Tensor or None
            A zero-dimensional tensor, on the device of the point; None where nothing is divided by.
        """
        return None

    def damped_frame(self, x: torch.Tensor, damping: float, *, frame: Any = None) -> Any:
        """A cheaper frame, made of matrix products, in a damped metric.

        Passed as ``frame`` to :meth:`egrad2rgrad`, :meth:`retr` and :meth:`retr_transp` it replaces the
        metric by one that is damped in the directions of small singular values, and the retraction by a
        cheaper one of first order. Coordinates in it are not isometric; see :meth:`undamped`.

        Parameters
        ----------
        x : torch.Tensor
            Point, shape ``(*batch, size)``.
        damping : float
            Relative to the mean squared singular value; 0 keeps the metric.
        frame
            What :meth:`frame` returned, if it is known; it makes this one cheaper.

        Raises
        ------
        ValueError
            If the format has no damped geometry, or the damping is negative.
        """
        raise ValueError(f"{self} has no damped geometry: its steps need damping=None")

    def ungauged_gradient(self, x: torch.Tensor, u: torch.Tensor, frame: Any) -> torch.Tensor:
        """Coordinates in a damped frame whose projection by :meth:`proju` is the gradient.

        The projection is linear: whoever adds something projects the sum, once.

        Parameters
        ----------
        x : torch.Tensor
            Point, shape ``(*batch, size)``.
        u : torch.Tensor
            Its ``.grad``, same shape.
        frame
            What :meth:`damped_frame` returned.

        Returns
        -------
        torch.Tensor
            Shape ``(*batch, size)``.
        """
        return self.egrad2rgrad(x, u, frame=frame)

    def undamped(self, x: torch.Tensor, u: torch.Tensor, damped: Any, *, frame: Any = None) -> torch.Tensor:
        """Isometric coordinates of a tangent vector that is given in a damped frame.

        Parameters
        ----------
        x, u : torch.Tensor
            Point and coordinates, shape ``(*batch, size)``.
        damped
            What :meth:`damped_frame` returned.
        frame
            ``self.frame(x)``, if it is known.
        """
        raise ValueError(f"{self} has no damped geometry")

    @abc.abstractmethod
    def proju(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """Project packed coordinates on the tangent space (enforce the gauge conditions)."""

    @abc.abstractmethod
    def egrad2rgrad(self, x: torch.Tensor, u: torch.Tensor, *, frame: Any = None) -> torch.Tensor:
        """Riemannian gradient from the autograd gradient of the packed point."""

    @abc.abstractmethod
    def tangent_to_dense(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """The dense tensor of a tangent vector, shape ``(*batch, *shape)``; linear in ``u``."""

    def project_dense(self, x: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
        """Orthogonal projection of a dense tensor on the tangent space.

        The coordinates are the adjoint of :meth:`tangent_to_dense`, which is an isometry.

        Parameters
        ----------
        x : torch.Tensor
            Base point, shape ``(*batch, size)``.
        tensor : torch.Tensor
            Shape ``(*batch, *shape)``.

        Returns
        -------
        torch.Tensor
            Tangent vector, shape ``(*batch, size)``.

        Raises
        ------
        ValueError
            If the shapes do not fit.
        """
        self._check_dense(tensor)
        batch = torch.broadcast_shapes(x.shape[:-1], tensor.shape[: tensor.ndim - len(self.shape)])
        x = x.detach().expand(*batch, self.size)
        adjoint = torch.func.vjp(lambda u: self.tangent_to_dense(x, u), torch.zeros_like(x))[1]
        return self.proju(x, adjoint(tensor.to(x).expand(*batch, *self.shape))[0])

    # Moving ----------------------------------------------------------------------------------

    @abc.abstractmethod
    def retr(self, x: torch.Tensor, u: torch.Tensor, *, frame: Any = None) -> torch.Tensor:
        """Retraction: a point of the same rank that agrees with ``x + u`` to first order.

        ``retr(x, 0)`` is the tensor of ``x``; the same coordinates are promised at points of full rank only.
        """

    def expmap(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """The same as :meth:`retr`: low-rank manifolds have no closed exponential map."""
        return self.retr(x, u)

    @abc.abstractmethod
    def transp(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        v: torch.Tensor,
        *,
        target: LowRankManifold | None = None,
        frame: Any = None,
        target_frame: Any = None,
    ) -> torch.Tensor:
        """Vector transport by orthogonal projection of the tangent tensor at ``x`` on that at ``y``.

        Parameters
        ----------
        x : torch.Tensor
            Start point on this manifold, shape ``(*batch, size)``.
        y : torch.Tensor
            Target point, shape ``(*batch, target.size)``.
        v : torch.Tensor
            Tangent vector at ``x``.
        target : LowRankManifold or None
            The manifold of ``y`` if its rank differs from this one's.
        frame
            ``self.frame(x)``, if it is known.
        target_frame
            ``target.frame(y)``, if it is known.

        Returns
        -------
        torch.Tensor
            Tangent vector at ``y``, shape ``(*batch, target.size)``.
        """

    @abc.abstractmethod
    def transp_squares(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        s: torch.Tensor,
        *,
        target: LowRankManifold | None = None,
        frame: Any = None,
        target_frame: Any = None,
    ) -> torch.Tensor:
        """Squares of coordinates (second moments), seen in the bases at ``y``.

        If the coordinates of a random tangent vector at ``x`` are uncorrelated with second moments ``s``,
        those of the same vector in the bases at ``y`` have these second moments; directions that are new at
        ``y`` take the mean of their factor. Arguments as for :meth:`transp`.
        """

    def retr_transp(
        self, x: torch.Tensor, u: torch.Tensor, v: torch.Tensor, *, frame: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``y = retr(x, u)`` and ``transp(x, y, v)``."""
        y = self.retr(x, u, frame=frame)
        return y, self.transp(x, y, v)
