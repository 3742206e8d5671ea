"""Contracting a low-rank tensor with data along its factors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import opt_einsum
import torch

from tenfold.manifolds import LowRankManifold, Node, TreeManifold

__all__ = ["contract"]

_Steps: TypeAlias = tuple[tuple[tuple[int, ...], str], ...]
# Rows assumed by compiled code, whose path must not depend on the size of the batch.
_ROWS = 1024


def contract(
    manifold: LowRankManifold, x: torch.Tensor, data: torch.Tensor, modes: Sequence[int]
) -> torch.Tensor:
    r"""Contract some modes of a low-rank tensor with the last axes of ``data``.

    .. math:: y_{b, \text{rest}} = \sum_{\text{modes}} W_{\text{rest}, \text{modes}} \; d_{b, \text{modes}}

    The factors are contracted one by one, in the order of fewest multiplications, which is found once for
    each format, shape, rank and number of rows. The dense tensor arises on the way only where that order
    forms it, which is where no other is cheaper. Compiled and exported code takes the order for 1024 rows.

    Parameters
    ----------
    manifold : LowRankManifold
        A tensor tree of any format; :meth:`lifted <tenfold.manifolds.TreeManifold.lifted>` or not.
    x : torch.Tensor
        Point, shape ``(manifold.size,)``.
    data : torch.Tensor
        Shape ``(*batch, *(manifold.shape[m] for m in modes))``.
    modes : sequence of int
        The modes that are summed over, in the order of the axes of ``data``.

    Returns
    -------
    torch.Tensor
        Shape ``(*batch, *rest)``, the rest of the modes in ascending order.

    Raises
    ------
    TypeError
        If the manifold is not a tensor tree.
    ValueError
        If the modes are not distinct modes of the tensor, the point is a batch, or the data do not fit.

    Notes
    -----
    Complexity for a Tensor Train matrix of ``d`` cores with row and column modes of size ``n`` and rank
    ``r``: at most about ``d b n^(d+1) r^2`` multiplications for ``b`` rows; the largest array has ``b n^d r``
    numbers.

    Examples
    --------
    >>> import torch
    >>> from tenfold.manifolds import TuckerManifold
    >>> from tenfold.nn import contract
    >>> manifold = TuckerManifold((4, 5, 6), rank=2)
    >>> x = manifold.origin(dtype=torch.float64)
    >>> data = torch.randn(7, 6, 4, dtype=torch.float64)
    >>> y = contract(manifold, x, data, modes=(2, 0))
    >>> torch.allclose(y, torch.einsum("ijk,bki->bj", manifold.to_dense(x), data))
    True
    """
    if not isinstance(manifold, TreeManifold):
        raise TypeError(f"contract needs the manifold of a tensor tree, got {manifold}")
    modes = tuple(modes)
    order = len(manifold.shape)
    if len(set(modes)) != len(modes) or not all(0 <= mode < order for mode in modes):
        raise ValueError(f"modes must be distinct modes of the shape {manifold.shape}, got {modes}")
    if x.ndim != 1:
        raise ValueError(f"x must be one point of shape {(manifold.size,)}, got {tuple(x.shape)}")
    sizes = tuple(manifold.shape[mode] for mode in modes)
    lead = data.ndim - len(modes)
    if lead < 0 or tuple(data.shape[lead:]) != sizes:
        raise ValueError(
            f"the last axes of data must have the sizes {sizes} of the modes {modes} of {manifold}, "
            f"got {tuple(data.shape)}"
        )
    batch, rest = data.shape[:lead], [manifold.shape[mode] for mode in range(order) if mode not in modes]
    rows = 1
    for size in batch:
        rows = rows * size
    flat = data.reshape(rows, *sizes)
    operands = [flat, *manifold.factors(x)]
    shapes = tuple(tuple(factor.shape) for factor in operands[1:])
    # Rows come in powers of two, so that a last, smaller batch of an epoch finds the path there.
    assumed = _ROWS if torch.compiler.is_compiling() else 1 << rows.bit_length()
    for positions, equation in _steps(manifold.tree.nodes, modes, sizes, shapes, assumed):
        operands.append(torch.einsum(equation, *(operands[k] for k in positions)))
    return operands[-1].reshape((*batch, *rest))


@torch.compiler.assume_constant_result
def _steps(*arguments: Any) -> _Steps:
    return _planned(*arguments)


@lru_cache(maxsize=4096)
def _planned(
    nodes: tuple[Node, ...],
    modes: tuple[int, ...],
    sizes: tuple[int, ...],
    shapes: tuple[tuple[int, ...], ...],
    rows: int,
) -> _Steps:
    """Pairwise contractions; each result is appended to the operands (the data, then the factors)."""
    letters = [opt_einsum.get_symbol(k) for k in range(52)]
    order = sum(len(node.modes) for node in nodes)
    row, mode, edge = letters[0], letters[1 : 1 + order], letters[1 + order :]
    rest = "".join(mode[m] for m in range(order) if m not in modes)
    parents = {child for node in nodes for child in node.children}
    terms = [row + "".join(mode[m] for m in modes)]
    for v, node in enumerate(nodes):
        legs = [edge[c] for c in node.children] + [mode[m] for m in node.modes]
        terms.append("".join(legs) + (edge[v] if v in parents else ""))
    path, _ = opt_einsum.contract_path(
        ",".join(terms) + "->" + row + rest, (rows, *sizes), *shapes, shapes=True, optimize="auto"
    )
    alive, steps = list(range(len(terms))), []
    for number, chosen in enumerate(path):
        positions = tuple(alive[k] for k in sorted(chosen))
        alive = [k for k in alive if k not in positions]
        kept = set(row + rest).union(*(terms[k] for k in alive))
        # The row first: the data then stay in the layout in which they came.
        inner = sorted({c for k in positions for c in terms[k]} & kept, key=(row + rest + "".join(edge)).find)
        last = number == len(path) - 1
        result = row + rest if last else "".join(inner)
        steps.append((positions, ",".join(terms[k] for k in positions) + "->" + result))
        alive.append(len(terms))
        terms.append(result)
    return tuple(steps)
