"""Tangent vectors of tensor trees, carried from one point to another."""

from __future__ import annotations

import torch

from tenfold.manifolds import tree_augmented, tree_transport
from tenfold.manifolds.base import LowRankManifold
from tenfold.manifolds.tree_calculus import Frame
from tenfold.manifolds.tree_ranks import RankAdaptiveTree
from tenfold.manifolds.tree_transport import Bases

__all__ = ["TransportingTree"]


class TransportingTree(RankAdaptiveTree):
    """Transport of tangent vectors, and of second moments of their coordinates, at any ranks."""

    def transp(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        v: torch.Tensor,
        *,
        target: LowRankManifold | None = None,
        frame: Frame | None = None,
        target_frame: Frame | None = None,
        bases: Bases = Bases.ANY,
    ) -> torch.Tensor:
        """As :meth:`LowRankManifold.transp`.

        Parameters
        ----------
        x, y, v, target, frame, target_frame
            See there.
        bases : Bases
            What the caller knows of the bases at ``y``, which saves products; not checked.
        """
        goal = self._goal(target)
        x, y, v = self._joint(x.detach(), y.detach(), v)
        tangent, new, frame = self.unpack_tensor(v), goal.unpack_tensor(y), frame or self.frame(x)
        if bases is Bases.AUGMENTED:
            return goal.pack_point(*tree_augmented.carry(self.tree, tangent, frame, new))
        target_frame = target_frame or goal.frame(y)
        if bases is Bases.SAME:
            blocks = tree_transport.transport_in_bases(self.tree, tangent, frame, target_frame)
        else:
            nodes = self.unpack_tensor(x)
            blocks = tree_transport.transport(self.tree, nodes, tangent, frame, new, target_frame)
        return goal.pack_point(*blocks)

    def transp_squares(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        s: torch.Tensor,
        *,
        target: LowRankManifold | None = None,
        frame: Frame | None = None,
        target_frame: Frame | None = None,
        bases: Bases = Bases.ANY,
    ) -> torch.Tensor:
        """As :meth:`LowRankManifold.transp_squares`; arguments as for :meth:`transp`."""
        goal = self._goal(target)
        x, y, s = self._joint(x.detach(), y.detach(), s)
        squares, new = self.unpack_tensor(s), goal.unpack_tensor(y)
        if bases is Bases.AUGMENTED:
            return goal.pack_point(*tree_augmented.carry_squares(self.tree, squares, new))
        frame, target_frame = frame or self.frame(x), target_frame or goal.frame(y)
        same = bases is Bases.SAME
        overlap = None if same else tree_transport.overlaps(self.tree, self.unpack_tensor(x), new)
        blocks = tree_transport.transport_squares(self.tree, squares, frame, target_frame, overlap)
        return goal.pack_point(*blocks)
