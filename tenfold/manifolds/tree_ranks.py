"""Ranks of tensor trees that change: truncation, exact sums, bases with room for a tangent vector."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from typing_extensions import Self

from tenfold.manifolds import tree_augmented, tree_moved, tree_transport
from tenfold.manifolds.base import LowRankManifold
from tenfold.manifolds.tree_calculus import Frame
from tenfold.manifolds.tree_format import TreeFormat
from tenfold.manifolds.tree_sum import weighted_sum
from tenfold.manifolds.tree_truncation import TreeTruncation
from tenfold.manifolds.truncation import Truncation

if TYPE_CHECKING:
    from tenfold.manifolds.tree_manifold import TreeManifold

__all__ = ["RankAdaptiveTree"]


class RankAdaptiveTree(TreeFormat):
    """What leads from a tensor tree to one of other ranks; :class:`TreeManifold` adds the geometry."""

    def truncation(
        self, x: torch.Tensor, u: torch.Tensor | None = None, *, frame: Frame | None = None
    ) -> Truncation:
        if u is None:
            upper = None if frame is None else frame.triangular_factors()
            return TreeTruncation.of_nodes(self, self.unpack_tensor(x.detach()), upper)
        x, u = torch.broadcast_tensors(x, u)
        nodes, tangent = self.unpack_tensor(x.detach()), self.unpack_tensor(u.detach())
        sum = tree_moved.moved(self.tree, nodes, tangent, frame or self.frame(x))
        return TreeTruncation(self, sum.triangular_factors(), sum.project)

    def weighted_sum(self, *parts: tuple[float, TreeManifold, torch.Tensor]) -> Truncation:
        """The spectra of a weighted sum of tensors, ready to be truncated.

        Parameters
        ----------
        *parts : tuple
            Weight, manifold and point of each, at least one; the manifolds have this format and shape, at any
            ranks, and the batches of the points broadcast.

        Returns
        -------
        Truncation
            Of the sum, exactly; its ranks are at most the sums of the ranks.

        Raises
        ------
        ValueError
            If there are no parts, or a manifold has another format or shape.
        """
        if not parts:
            raise ValueError(f"a weighted sum on {self} needs at least one part")
        nodes = [(scale, self._goal(other).unpack_tensor(x.detach())) for scale, other, x in parts]
        return TreeTruncation.of_nodes(self, weighted_sum(self.tree, nodes))

    def augment(
        self, x: torch.Tensor, u: torch.Tensor, *, frame: Frame | None = None
    ) -> tuple[Self, torch.Tensor]:
        """The same tensor with room for a tangent vector: every basis extended by the directions of ``u``.

        The core of the result is that of ``x`` padded with zeros (basis augmentation of the rank-adaptive
        integrators). It is an intermediate object: its ranks need not be feasible for a tensor.

        Parameters
        ----------
        x, u : torch.Tensor
            Point and tangent vector, shape ``(*batch, size)``.
        frame : Frame or None
            ``self.frame(x)``, if it is known.

        Returns
        -------
        manifold : TreeManifold
            The manifold of at most doubled ranks.
        point : torch.Tensor
            Shape ``(*batch, manifold.size)``.
        """
        return self._widened(tree_augmented.augment, x, u, frame)

    def augmented_frame(self, frame: Frame, y: torch.Tensor, target: TreeManifold) -> Frame:
        """``target.frame(y)`` of what :meth:`augment` made of a point, from the frame of the point.

        Parameters
        ----------
        frame : Frame
            Of the point.
        y : torch.Tensor
            What :meth:`augment` returned, shape ``(*batch, target.size)``.
        target : TreeManifold
            The manifold of ``y``.
        """
        return tree_augmented.augmented_frame(self.tree, frame, self._goal(target).unpack_tensor(y))

    def extended(
        self, x: torch.Tensor, u: torch.Tensor, *, frame: Frame | None = None
    ) -> tuple[Self, torch.Tensor]:
        """The sum ``x + u``, exactly, in the bases of :meth:`augment`; arguments and result as there."""
        return self._widened(tree_augmented.extend, x, u, frame)

    def feasible(self, x: torch.Tensor) -> tuple[Self, torch.Tensor]:
        """What :meth:`augment` or :meth:`extended` made, at ranks that a tensor can have.

        Parameters
        ----------
        x : torch.Tensor
            Point, shape ``(*batch, size)``.

        Returns
        -------
        manifold : TreeManifold
            A manifold of feasible ranks; equal to this one where its own are.
        point : torch.Tensor
            The same tensor, shape ``(*batch, manifold.size)``; ``x`` itself where nothing had to be done.
        """
        manifold = self.with_rank(self.tree.clip(self.shape, self._ranks))
        if manifold.factor_shapes == self.factor_shapes:
            return manifold, x
        truncation = self.truncation(x)
        return truncation.to([values.shape[-1] for values in truncation.singular_values])

    def _widened(
        self,
        build: Callable[..., list[torch.Tensor]],
        x: torch.Tensor,
        u: torch.Tensor,
        frame: Frame | None = None,
    ) -> tuple[Self, torch.Tensor]:
        x, u = torch.broadcast_tensors(x, u)
        nodes = self.unpack_tensor(x.detach())
        wide = build(self.tree, nodes, self.unpack_tensor(u.detach()), frame or self.frame(x))
        manifold = copy.copy(self)
        manifold._ranks = tuple(wide[group[0]].shape[-1] for group in self.tree.ranks)
        # Taken from the nodes: edges that share a rank may be cut off at different mode sizes.
        lead = x.ndim - 1
        manifold.factor_shapes = tuple(tuple(node.shape[lead:]) for node in wide)
        return manifold, manifold.pack_point(*wide)

    def carry_core(
        self, x: torch.Tensor, y: torch.Tensor, core: torch.Tensor, target: TreeManifold
    ) -> torch.Tensor:
        """A tensor in the bases of one point, projected on the bases of another.

        Parameters
        ----------
        x, y : torch.Tensor
            Old point on this manifold, new point on ``target``.
        core : torch.Tensor
            Shape ``(*batch, *core of x)``.
        target : TreeManifold
            The manifold of ``y``.

        Returns
        -------
        torch.Tensor
            Shape ``(*batch, *core of y)``.
        """
        old, new = self.unpack_tensor(x.detach()), self._goal(target).unpack_tensor(y.detach())
        return tree_transport.carry_core(self.tree, old, new, core)

    def _goal(self, target: LowRankManifold | None) -> RankAdaptiveTree:
        goal = self if target is None else target
        if not isinstance(goal, RankAdaptiveTree) or (goal.tree, goal.shape) != (self.tree, self.shape):
            raise ValueError(f"cannot transport from {self} to {goal}: the format or the shape differs")
        return goal
