"""Points of every format that is a tensor tree: shapes, ranks, packing and checks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import geoopt
import torch
from typing_extensions import Self

from tenfold.linalg import LINALG_DTYPES, qr, unfold
from tenfold.manifolds import tree_calculus as calculus
from tenfold.manifolds.base import LowRankManifold
from tenfold.manifolds.tree import TensorTree

__all__ = ["TreeFormat"]


class TreeFormat(LowRankManifold):
    """Tensors of fixed rank in a tensor tree.

    The part of :class:`TreeManifold` that knows points and no tangent vectors.
    """

    def __init__(self, tree: TensorTree, shape: Sequence[int], rank: int | Sequence[int]):
        super().__init__()
        self.tree = tree
        self.shape = _positive(shape, "shape")
        if len(self.shape) != tree.order:
            raise ValueError(f"{self.name} with {tree.order} modes got the shape {self.shape}")
        if not isinstance(rank, int | Sequence):
            raise TypeError(f"rank must be an integer or a sequence of integers, got {rank!r}")
        self._ranks = _positive(self._complete(rank), "rank")
        if len(self._ranks) != len(tree.ranks):
            raise ValueError(
                f"{self.name} of shape {self.shape} has {len(tree.ranks)} ranks, got {self._ranks}"
            )
        feasible = tree.clip(self.shape, self._ranks)
        if feasible != self._ranks:
            raise ValueError(
                f"no tensor of shape {self.shape} has {self.name} rank {self._ranks}; "
                f"the largest feasible rank below it is {feasible}"
            )
        by_edge = tree.edge_ranks(self._ranks)
        self.factor_shapes = tuple(tree.node_shape(v, self.shape, by_edge) for v in range(len(tree.nodes)))

    @property
    def rank(self) -> Any:
        """Rank in the format's own terms."""
        return self._ranks

    @property
    def full_rank(self) -> Any:
        """The rank at which every tensor of this shape is represented."""
        return self.tree.clip(self.shape, [self.dense_size] * len(self.tree.ranks))

    @property
    def dim(self) -> int:
        """Dimension of the manifold: stored numbers less those of the gauge, ``sum of r^2``."""
        by_edge = self.tree.edge_ranks(self._ranks)
        return self.size - sum(rank**2 for rank in by_edge.values())

    def _key(self) -> tuple[Any, ...]:
        # At one rank augmented bases may have other sizes.
        return type(self), self.tree, self.shape, self._ranks, self.factor_shapes

    def _complete(self, rank: int | Sequence[int]) -> Sequence[int]:
        """One rank for each of ``tree.ranks`` from what the format accepts; called with the shape set."""
        return (rank,) * len(self.tree.ranks) if isinstance(rank, int) else rank

    def _clipped(self, rank: int) -> tuple[int, ...]:
        """One number for all ranks, lowered where it exceeds what is feasible."""
        ranks = (rank,) * len(self.tree.ranks)
        return self.tree.clip(self.shape, ranks) if rank >= 1 else ranks or (rank,)

    def with_rank(self, rank: int | Sequence[int]) -> Self:
        new = copy.copy(self)
        TreeFormat.__init__(new, self.tree, self.shape, rank)
        return new

    def size_at(self, ranks: Sequence[int]) -> int:
        """Stored numbers at other ranks, lowered to feasible ones; no manifold is made.

        Parameters
        ----------
        ranks : sequence of int
            Positive, one for each of ``tree.ranks``.
        """
        return self.tree.size(self.shape, self.tree.clip(self.shape, ranks))

    # Checks ----------------------------------------------------------------------------------

    def _check_point_on_manifold(
        self, x: torch.Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        if not torch.isfinite(x).all():
            return False, "the point holds NaN or infinity"
        if not x.numel():
            return True, None
        for v, node in self._bases(x.detach()):
            basis = calculus.matrix(self.tree, v, node)
            eye = torch.eye(basis.shape[-1], dtype=basis.dtype, device=basis.device)
            defect = (basis.mT @ basis - eye).abs().amax().item()
            if defect > atol + rtol:
                return False, f"factor {v} is not orthonormal: |U^T U - I| reaches {defect:.3g}"
        return True, None

    def _bases(self, x: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
        """Numbers and tensors of all nodes but the root."""
        return [(v, node) for v, node in enumerate(self.unpack_tensor(x)) if v != self.tree.root]

    # Points ----------------------------------------------------------------------------------

    def projx(self, x: torch.Tensor) -> torch.Tensor:
        return self.pack_point(*calculus.orthonormalize(self.tree, self.unpack_tensor(x.detach())))

    def random(
        self,
        *size: int | tuple[int, ...],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        if kwargs:
            raise TypeError(f"random of {self} does not know the arguments {sorted(kwargs)}")
        wanted = geoopt.utils.size2shape(*size) if size else (self.size,)
        self._assert_check_shape(wanted, "the size")
        factors = []
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if not dtype.is_floating_point:
            raise TypeError(f"points of {self} are real and floating, got dtype={dtype}")
        # Half precision has no QR: such a point is the rounded one of float32.
        working = dtype if dtype in LINALG_DTYPES else torch.float32
        for v, shape in enumerate(self.factor_shapes):
            normal = torch.randn(*wanted[:-1], *shape, dtype=working, device=device, generator=generator)
            if v != self.tree.root:
                normal = qr(calculus.matrix(self.tree, v, normal))[0].reshape(normal.shape)
            factors.append(normal)
        return self.pack_point(*factors).to(dtype)

    def to_dense(self, x: torch.Tensor) -> torch.Tensor:
        return calculus.dense(self.tree, self.factors(x), self.shape)

    def radial(self, x: torch.Tensor) -> torch.Tensor:
        factors = self.unpack_tensor(x)
        return self.pack_point(
            *(f if v == self.tree.root else torch.zeros_like(f) for v, f in enumerate(factors))
        )

    def _exact(self, tensor: torch.Tensor) -> tuple[Self, torch.Tensor]:
        tree, lead = self.tree, tensor.ndim - len(self.shape)
        modes = tree.modes_below(tree.root)
        rest = tensor.detach().permute(*range(lead), *(lead + m for m in modes))
        # Subtrees that are done stand in `rest` as one axis, named by their node; open modes are
        # named by None.
        axes: list[int | None] = [None] * len(modes)
        factors: list[torch.Tensor] = [rest] * len(tree.nodes)
        for v in tree.bottomup:
            if v == tree.root:
                factors[v] = rest
                break
            legs = tree.nodes[v].legs
            first = self._first_axis(v, axes)
            sizes = rest.shape[lead + first : lead + first + legs]
            merged = rest.flatten(lead + first, lead + first + legs - 1)
            q, r = qr(unfold(merged, first, merged.ndim - lead))
            shape = list(merged.shape)
            del shape[lead + first]
            rest = r.reshape(*shape[:lead], r.shape[-2], *shape[lead:]).movedim(lead, lead + first)
            factors[v] = q.reshape(*shape[:lead], *sizes, q.shape[-1])
            axes[first : first + legs] = [v]
        manifold = self.with_rank([factors[group[0]].shape[-1] for group in tree.ranks])
        return manifold, manifold.pack_point(*factors)

    def _first_axis(self, v: int, axes: list[int | None]) -> int:
        """Where the axes of node ``v`` begin in a tensor whose axes are ``axes``; they are adjacent."""
        children = self.tree.nodes[v].children
        if children:
            return axes.index(children[0])
        position = self.tree.modes_below(self.tree.root).index(self.tree.nodes[v].modes[0])
        # Everything to the right of a leaf's modes may be merged already, nothing to the left is.
        return position


def _positive(numbers: Sequence[int], name: str) -> tuple[int, ...]:
    values = tuple(numbers)
    if any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in values):
        raise ValueError(f"{name} must consist of integers of at least 1, got {numbers}")
    return values
