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

    Every basis is continued by random orthonormal directions, the core by small random numbers, and the old
    columns of a basis by small random rows where a rank below it grows:

    .. math:: U_v^+ = \operatorname{orth} \left[ \begin{matrix} U_v \\ \text{noise} \end{matrix} \;\middle|\;
              \text{random} \right], \qquad C^+ = C \oplus \text{noise}, \qquad
              |x^+ - x| \approx \text{scale} \cdot |x|

    The last is exact where one rank grows; where several do, it holds up to a factor ``1 + O(scale)``.

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
        Norm of the change relative to that of the tensor, positive; for the zero tensor the norm itself.
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
    Complexity: one QR of every factor at the new rank, two and a frame where a rank below a node that is
    not the root grows.

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
    device = x.device if generator is None else generator.device
    nodes: list[torch.Tensor] = []
    noise: dict[int, torch.Tensor] = {}
    for v, (node, shape) in enumerate(
        zip(manifold.unpack_tensor(x.detach()), larger.factor_shapes, strict=True)
    ):
        drawn = torch.randn(*x.shape[:-1], *shape, dtype=x.dtype, device=device, generator=generator).to(x)
        old: Any = (..., *(slice(0, n) for n in node.shape[node.ndim - len(shape) :]))
        wide = torch.zeros_like(drawn)
        wide[old] = node
        if v == tree.root:
            # A core of zeros has no entries to keep.
            drawn[old] *= vector_norm(node, tuple(range(-len(shape), 0)), keepdim=True) == 0
            noise[v] = drawn
        else:
            # The old columns stay what they were, in the larger space of the rows below them.
            known = node.shape[-1]
            wide[..., known:] = drawn[..., known:]
            columns = _completed(calculus.matrix(tree, v, wide), known)
            wide = calculus.unmatrix(tree, v, columns, wide)
            if shape[:-1] != manifold.factor_shapes[v][:-1] and columns.shape[-2] > columns.shape[-1]:
                drawn[old] = 0
                rows = calculus.matrix(tree, v, drawn)[..., :known]
                noise[v] = calculus.unmatrix(tree, v, calculus.perpendicular(columns, rows), wide)
        nodes.append(wide)
    return larger, larger.pack_point(*_disturbed(manifold, x, nodes, noise, scale))


def _disturbed(
    manifold: TreeManifold,
    x: torch.Tensor,
    nodes: list[torch.Tensor],
    noise: dict[int, torch.Tensor],
    scale: float,
) -> list[torch.Tensor]:
    """Noise of equal shares in the core and in old columns, and the bases made orthonormal again."""
    tree, lead = manifold.tree, x.ndim - 1
    upper = manifold.frame(x).upper if len(noise) > 1 else {}
    lengths = {}
    for v, item in noise.items():
        change = item if v == tree.root else calculus.right(tree, v, item, upper[v].mT)
        lengths[v] = vector_norm(change.flatten(lead))
    shares = torch.stack([length > 0 for length in lengths.values()]).sum(0).to(x)
    core = vector_norm(manifold.unpack_tensor(x.detach())[tree.root].flatten(lead))
    unit = torch.where(core > 0, core, torch.ones_like(core)) / shares.clamp(min=1).sqrt()
    for v, length in lengths.items():
        size = scale * torch.where(length > 0, unit / length, torch.ones_like(length))
        item = size.reshape(*size.shape[:lead], *(1,) * calculus.order_of(tree, v)) * noise[v]
        nodes[v][..., : item.shape[-1]] += item
    return calculus.orthonormalize(tree, nodes) if len(noise) > 1 else nodes


def _completed(columns: torch.Tensor, known: int) -> torch.Tensor:
    """Orthonormal columns: the first ``known``, which are so already, and what the others add."""
    basis, fresh = columns[..., :known], columns[..., known:]
    for _ in range(2):  # twice is enough (Kahan, Parlett)
        fresh = qr(calculus.perpendicular(basis, fresh))[0]
    return torch.cat([basis, fresh], dim=-1)
