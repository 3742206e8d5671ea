"""The Riemannian geometry of every format that is a tensor tree."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from typing_extensions import Self

from tenfold.linalg import Orthonormalization, solve_right_upper
from tenfold.manifolds import tree_calculus as calculus
from tenfold.manifolds import tree_damped
from tenfold.manifolds.tree_calculus import Frame
from tenfold.manifolds.tree_damped import DampedFrame
from tenfold.manifolds.tree_lift import tangent_lift
from tenfold.manifolds.tree_transporting import TransportingTree

__all__ = ["TreeManifold"]

HOSVD = "hosvd"
"""The retraction that truncates."""


class TreeManifold(TransportingTree):
    """Tensors of fixed rank in a tensor tree; formats subclass it and choose the tree.

    Parameters
    ----------
    tree : TensorTree
        The tree; its nodes are the factors, in packed order.
    shape : sequence of int
        Shape of the dense tensor.
    rank : int or sequence of int
        One rank for each of ``tree.ranks``; one number stands for all of them.

    Raises
    ------
    ValueError
        If a size or rank is below 1, if their number does not fit the tree, or if no tensor of this
        shape has these ranks.
    """

    retraction_order = 2
    is_lifted = False
    _retraction: Orthonormalization | None = None
    _truncates = False

    def _key(self) -> tuple[Any, ...]:
        return *super()._key(), self.is_lifted, self.retraction

    # Retractions -----------------------------------------------------------------------------

    @property
    def retraction(self) -> str | None:
        """How retractions make their bases orthonormal; None is the cheapest way that is always accurate."""
        if self._truncates:
            return HOSVD
        return None if self._retraction is None else self._retraction.value

    def with_retraction(self, how: Orthonormalization | str | None) -> Self:
        """The same manifold with another retraction.

        Parameters
        ----------
        how : Orthonormalization, str or None
            ``"qr"``, ``"cholesky"``, ``"cholesky-qr3"``, ``"polar"``, ``"newton-schulz"``: what makes the
            bases orthonormal; all of these retractions are the same map in exact arithmetic, but in the
            exact geometry only QR and SVD stand singular values of zero.
            ``"hosvd"``: the sum of point and tangent vector, truncated by singular value
            decompositions, the quasi-best approximation (in the damped geometry, whose steps need no
            truncation, the default). None: QR in the exact geometry, one Cholesky factor in the damped one.

        Returns
        -------
        Self
            A new manifold, unequal to this one.

        Raises
        ------
        ValueError
            If the name is not known.
        """
        new = copy.copy(self)
        new._truncates = how == HOSVD
        new._retraction = None if how is None or new._truncates else Orthonormalization(how)
        return new

    # Gradients -------------------------------------------------------------------------------

    def lifted(self) -> Self:
        """The same manifold with gradients that divide by nothing.

        The forward pass contracts :meth:`factors` instead of :meth:`unpack_tensor`; autograd then
        returns isometric coordinates, accurate at any conditioning, and :meth:`egrad2rgrad` only enforces
        the gauge. The price is a forward and backward pass at twice the ranks.
        """
        new = copy.copy(self)
        new.is_lifted = True
        return new

    def factors(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What a forward pass contracts: the factors, doubled where a :meth:`lifted` manifold is to
        return a gradient.

        Parameters
        ----------
        x : torch.Tensor
            Point, shape ``(*batch, size)``.

        Returns
        -------
        tuple of torch.Tensor
            The factors of :meth:`unpack_tensor`; on a lifted manifold, if a gradient of ``x`` is wanted,
            with every rank doubled and the new directions zero, so that the tensor is the same.
        """
        return tangent_lift(self, x) if self._lifts(x) else self.unpack_tensor(x)

    def _lifts(self, x: torch.Tensor) -> bool:
        return self.is_lifted and torch.is_grad_enabled() and x.requires_grad

    def unpack_tensor(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self._lifts(tensor):
            raise ValueError(f"gradients on the lifted {self} flow through factors(x), not unpack_tensor(x)")
        return super().unpack_tensor(tensor)

    # Tangent space ---------------------------------------------------------------------------

    def _check_vector_on_tangent(
        self, x: torch.Tensor, u: torch.Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        if not torch.isfinite(u).all():
            return False, "the vector holds NaN or infinity"
        if not (x.numel() and u.numel()):
            return True, None
        blocks = self.unpack_tensor(u.detach())
        for v, node in self._bases(x.detach()):
            block = calculus.matrix(self.tree, v, blocks[v])
            defect = (calculus.matrix(self.tree, v, node).mT @ block).abs().amax().item()
            if defect > atol + rtol * block.abs().amax().item():
                return False, f"block {v} violates the gauge condition: |U^T D| reaches {defect:.3g}"
        return True, None

    def tangent_matrices(self, u: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As :meth:`LowRankManifold.tangent_matrices`; the core is split where it is closest to square."""
        blocks = list(super().tangent_matrices(u))
        core = self.unpack_tensor(u)[self.tree.root]
        lead, sizes = u.ndim - 1, self.factor_shapes[self.tree.root]
        rows = min(
            (math.prod(sizes[:k]) for k in range(len(sizes))),
            key=lambda m: max(m, math.prod(sizes) / m),
        )
        blocks[self.tree.root] = core.reshape(*u.shape[:lead], rows, math.prod(sizes) // rows)
        return tuple(blocks)

    def frame(self, x: torch.Tensor) -> Frame:
        if not self.is_lifted or x.dtype == torch.float64:
            return calculus.frame_of(self.tree, self.unpack_tensor(x.detach()))
        # A QR in float32 turns the directions of small singular values by eps times the condition
        # number, the very error that a lifted manifold is there to avoid.
        exact = calculus.frame_of(self.tree, self.unpack_tensor(x.detach().double()))
        return Frame(*({v: t.to(x.dtype) for v, t in part.items()} for part in (exact.env, exact.upper)))

    def gradient_conditioning(self, frame: Frame | DampedFrame) -> torch.Tensor | None:
        if self.is_lifted or isinstance(frame, DampedFrame):
            return None
        if not any(r.numel() for r in frame.upper.values()):
            return None
        # The diagonal of a triangular factor bounds its smallest singular value from above.
        ratios = []
        for r in frame.upper.values():
            largest = r.abs().amax((-2, -1)).clamp(min=torch.finfo(r.dtype).tiny)
            ratios.append(r.diagonal(dim1=-2, dim2=-1).abs().amin(-1) / largest)
        return torch.stack([ratio.amin() for ratio in ratios]).amin()

    def damped_frame(self, x: torch.Tensor, damping: float, *, frame: Frame | None = None) -> DampedFrame:
        if not damping >= 0.0:
            raise ValueError(f"damping must not be negative, got {damping}")
        return tree_damped.frame_of(self.tree, self.unpack_tensor(x.detach()), damping, frame)

    def undamped(
        self, x: torch.Tensor, u: torch.Tensor, damped: DampedFrame, *, frame: Frame | None = None
    ) -> torch.Tensor:
        x, u = self._joint(x, u)
        blocks = tree_damped.isometric(self.tree, self.unpack_tensor(u), damped, frame or self.frame(x))
        return self.pack_point(*blocks)

    def _joint(self, *packed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Packed tensors, of one batch where the tree is a root alone, whose block meets no other."""
        return packed if self.tree.ranks else tuple(torch.broadcast_tensors(*packed))

    def proju(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        x, u = self._joint(x, u)
        factors, blocks = self.unpack_tensor(x), self.unpack_tensor(u)
        return self.pack_point(
            *(self._gauge(v, f, b) for v, (f, b) in enumerate(zip(factors, blocks, strict=True)))
        )

    def _gauge(self, v: int, factor: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
        if v == self.tree.root:
            return block
        basis = calculus.matrix(self.tree, v, factor)
        columns = calculus.matrix(self.tree, v, block)
        flat = calculus.perpendicular(basis, columns)
        return flat.reshape(*flat.shape[:-2], *self.factor_shapes[v])

    def egrad2rgrad(self, x: torch.Tensor, u: torch.Tensor, *, frame: Frame | None = None) -> torch.Tensor:
        r"""Riemannian gradient from the autograd gradient of the packed point.

        .. math:: \dot C = g_C, \qquad D_v = (I - U_v U_v^T) g_v S_v^{-T}

        by a triangular solve, whose relative error is about ``eps`` times the condition number of
        the unfoldings of the core; the normal equations are never formed.

        Parameters
        ----------
        x : torch.Tensor
            Point, shape ``(*batch, size)``.
        u : torch.Tensor
            Its ``.grad``, same shape.
        frame : Frame, DampedFrame or None
            ``self.frame(x)``, or ``self.damped_frame(x, damping)`` for the damped metric.

        Returns
        -------
        torch.Tensor
            Tangent vector in isometric coordinates, shape ``(*batch, size)``.
        """
        x = x.detach()
        if self.is_lifted:
            return self._from_isometric(x, u, frame)
        if isinstance(frame, DampedFrame):
            return self.proju(x, self.ungauged_gradient(x, u, frame))
        x, u = self._joint(x, u)
        frame = frame or self.frame(x)
        factors, grads = self.unpack_tensor(x), self.unpack_tensor(u)
        blocks = []
        for v, (factor, grad) in enumerate(zip(factors, grads, strict=True)):
            if v != self.tree.root:
                columns = solve_right_upper(calculus.matrix(self.tree, v, grad), frame.upper[v])
                grad = self._gauge(v, factor, columns.reshape(*columns.shape[:-2], *self.factor_shapes[v]))
            blocks.append(grad)
        return self.pack_point(*blocks)

    def ungauged_gradient(self, x: torch.Tensor, u: torch.Tensor, frame: DampedFrame) -> torch.Tensor:
        if self.is_lifted:
            return self._from_isometric(x, u, frame)
        x, u = self._joint(x, u)
        blocks = list(self.unpack_tensor(u))
        for v, inverse in frame.inverse.items():
            columns = calculus.matrix(self.tree, v, blocks[v]) @ inverse
            blocks[v] = calculus.unmatrix(self.tree, v, columns, blocks[v])
        return self.pack_point(*blocks)

    def _from_isometric(
        self, x: torch.Tensor, u: torch.Tensor, frame: Frame | DampedFrame | None
    ) -> torch.Tensor:
        """The gradient that a lifted forward pass returned, in the coordinates of ``frame``."""
        if isinstance(frame, DampedFrame):
            u = self.pack_point(
                *tree_damped.coordinates(self.tree, self.unpack_tensor(u), frame, self.frame(x))
            )
        return self.proju(x.detach(), u)

    def tangent_to_dense(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        x, u = self._joint(x.detach(), u)
        # A tangent vector may carry gradients where a point of a lifted manifold may not.
        blocks = super().unpack_tensor(u)
        return calculus.dense_tangent(self.tree, self.unpack_tensor(x), blocks, self.frame(x), self.shape)

    # Moving ----------------------------------------------------------------------------------

    def retr(
        self, x: torch.Tensor, u: torch.Tensor, *, frame: Frame | DampedFrame | None = None
    ) -> torch.Tensor:
        """Second-order retraction by one subspace iteration, or first-order by products only.

        The first is :func:`tree_calculus.retract`; the second, for coordinates in a damped frame, is
        :func:`tree_damped.retract`; :meth:`with_retraction` chooses among other ways to do it.

        ``retr(x, 0)`` is ``x`` in coordinates too where every singular value is positive. Where some vanish,
        the tensor stays, but the directions that belong to them are arbitrary, and so are the coordinates:
        state that is kept in coordinates has to be transported even if the step was zero.

        Bases have no derivative where singular values meet, so the result carries no graph.

        Parameters
        ----------
        x, u : torch.Tensor
            Point and tangent vector, shape ``(*batch, size)``.
        frame : Frame, DampedFrame or None
            ``self.frame(x)``, or ``self.damped_frame(x, damping)`` for the damped metric.

        Returns
        -------
        torch.Tensor
            Shape ``(*batch, size)``.
        """
        x, u = torch.broadcast_tensors(x.detach(), u.detach())
        nodes, tangent = self.unpack_tensor(x), self.unpack_tensor(u)
        options = () if self._retraction is None else (self._retraction,)
        if isinstance(frame, DampedFrame):
            return self.pack_point(*tree_damped.retract(self.tree, nodes, tangent, frame, *options))
        if self._truncates:
            best = self.unpack_tensor(self.truncation(x, u, frame=frame).to(self._ranks)[1])
            return self.pack_point(*calculus.aligned(self.tree, best, nodes))
        return self.pack_point(*calculus.retract(self.tree, nodes, tangent, frame or self.frame(x), *options))

    def retr_transp(
        self,
        x: torch.Tensor,
        u: torch.Tensor,
        v: torch.Tensor,
        *,
        frame: Frame | DampedFrame | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, u, v = torch.broadcast_tensors(x, u, v)
        if isinstance(frame, DampedFrame):
            # The bases turn by O(|u|^2) only, so enforcing the gauge is a transport of first order.
            y = self.retr(x, u, frame=frame)
            return y, self.proju(y, v)
        frame = frame or self.frame(x)
        y = self.retr(x, u, frame=frame)
        return y, self.transp(x, y, v, frame=frame)
