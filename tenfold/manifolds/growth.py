"""Raising the ranks of a point."""

from __future__ import annotations

from typing import Any

import torch

from tenfold.linalg import qr, vector_norm
from tenfold.manifolds import tree_calculus as calculus
from tenfold.manifolds.base import LowRankManifold
from tenfold.manifolds.tree_manifold import TreeManifold

__all__ = ["grow"]


def grow(
    manifold: LowRankManifold,
    x: torch.Tensor,
    rank: Any,
    *,
    scale: float = 1e-6,
    generator: torch.Generator | None = None,
) -> tuple[TreeManifold, torch.Tensor]:
    r"""A point of a higher rank next to a point.

    Every basis is continued by random orthonormal directions, and the core by small random numbers:

    .. math:: U_v^+ = [U_v \mid \text{random}], \qquad C^+ = C \oplus \text{noise}, \quad
              |x^+ - x| = \text{scale} \cdot |x|

    Random directions are a choice of their own: the Riemannian gradient at the new point is
    the projection of the Euclidean gradient on the tangent space, which in its new directions contracts that
    gradient with random vectors. The next step is therefore a randomised range finder for what the smaller
    rank could not represent (Steinlechner 2016 grows Tensor Trains alike).

    Parameters
    ----------
    manifold : LowRankManifold
        The manifold of the point; a tensor tree.
    x : torch.Tensor
        Point, shape ``(*batch, manifold.size)``.
    rank : int or sequence of int
        The new rank in the manifold's own terms, no component below the old one.
    scale : float
        Norm of the change relative to that of the tensor, positive; relative to 1 for the zero tensor.
    generator : torch.Generator or None
        Source of the random numbers.

    Returns
    -------
    manifold : TreeManifold
        The manifold at the new rank.
    point : torch.Tensor
        Shape ``(*batch, manifold.size)``.

    Raises
    ------
    TypeError
        If the manifold is not a tensor tree.
    ValueError
        If a rank would shrink or is not feasible, or the scale is not positive.

    Notes
    -----
    Complexity: one QR of every factor at the new rank.

    References
    ----------
    Steinlechner, "Riemannian optimization for high-dimensional tensor completion", SIAM J. Sci. Comput. 2016.
    """
    if not isinstance(manifold, TreeManifold):
        raise TypeError(f"only tensor trees can grow, got {manifold}")
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")
    larger = manifold.with_rank(rank)
    if any(
        n > m
        for old, new in zip(manifold.factor_shapes, larger.factor_shapes, strict=True)
        for n, m in zip(old, new, strict=True)
    ):
        raise ValueError(f"ranks can only grow: {manifold} at rank {larger.rank} would be smaller")
    tree = manifold.tree
    nodes = []
    for v, (node, shape) in enumerate(
        zip(manifold.unpack_tensor(x.detach()), larger.factor_shapes, strict=True)
    ):
        device = x.device if generator is None else generator.device
        wide = torch.randn(*x.shape[:-1], *shape, dtype=x.dtype, device=device, generator=generator).to(x)
        old: Any = (..., *(slice(0, n) for n in node.shape[node.ndim - len(shape) :]))
        if v == tree.root:
            wide[old] = 0
            axes = tuple(range(-len(shape), 0))
            size = vector_norm(node, axes, keepdim=True)
            noise = vector_norm(wide, axes, keepdim=True)
            size = torch.where(size > 0, size, torch.ones_like(size))
            wide *= scale * size / torch.where(noise > 0, noise, torch.ones_like(noise))
        else:
            # The old columns stay what they were, in the larger space of the rows below them.
            wide[..., : node.shape[-1]] = 0
        wide[old] = node
        if v != tree.root:
            columns = calculus.matrix(tree, v, wide)
            wide = calculus.unmatrix(_completed(columns, node.shape[-1]), wide)
        nodes.append(wide)
    return larger, larger.pack_point(*nodes)


def _completed(columns: torch.Tensor, known: int) -> torch.Tensor:
    """Orthonormal columns: the first ``known``, which are so already, and what the others add."""
    basis, fresh = columns[..., :known], columns[..., known:]
    for _ in range(2):  # twice is enough (Kahan, Parlett)
        fresh = qr(calculus.perpendicular(basis, fresh))[0]
    return torch.cat([basis, fresh], dim=-1)
