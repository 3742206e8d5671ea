"""Contracting a low-rank tensor with data along its factors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from string import ascii_letters
from typing import TypeAlias

import opt_einsum
import torch

from tenfold.manifolds import LowRankManifold, TensorTree, TreeManifold

__all__ = ["contract"]

_Steps: TypeAlias = tuple[tuple[tuple[int, ...], str], ...]
# Rows assumed by compiled code, whose path must not depend on the size of the batch.
_ROWS = 1024
# Sorted, so that the row has the first.
_LETTERS = "".join(sorted(ascii_letters))


def contract(
    manifold: LowRankManifold, x: torch.Tensor, data: torch.Tensor, modes: Sequence[int]
) -> torch.Tensor:
    r"""Contract some modes of a low-rank tensor with the last axes of ``data``.

    .. math:: y_{b, \text{rest}} = \sum_{\text{modes}} W_{\text{rest}, \text{modes}} \; d_{b, \text{modes}}

    The factors are contracted one by one, in the order of fewest multiplications, which is found once for
    each format, shape, rank and number of rows. The dense tensor arises on the way only where that order
    forms it, which is where no other is cheaper. Compiled, traced and exported code takes the order for 1024
    rows.

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
    if order + len(manifold.tree.nodes) >= len(_LETTERS):
        raise ValueError(f"contract has letters for fewer modes and factors than {manifold} has")
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
    terms, result = _terms(manifold.tree, modes)
    # Rows come in powers of two, so that a last, smaller batch of an epoch finds the order there.
    assumed = _ROWS
    if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        assumed = 1 << rows.bit_length()
    shapes = ((assumed, *sizes), *(tuple(map(int, factor.shape)) for factor in operands[1:]))
    for positions, equation in _steps(terms, result, shapes):
        operands.append(torch.einsum(equation, *(operands[k] for k in positions)))
    return operands[-1].reshape((*batch, *rest))


def _terms(tree: TensorTree, modes: Sequence[int]) -> tuple[tuple[str, ...], str]:
    """Letters of the axes of the data and of each factor, and those of the result; the row has the first."""
    row, mode, edge = _LETTERS[0], _LETTERS[1 : 1 + tree.order], _LETTERS[1 + tree.order :]
    terms = [row + "".join(mode[m] for m in modes)]
    for v, node in enumerate(tree.nodes):
        legs = [edge[c] for c in node.children] + [mode[m] for m in node.modes]
        terms.append("".join(legs) + ("" if v == tree.root else edge[v]))
    return tuple(terms), row + "".join(mode[m] for m in range(tree.order) if m not in modes)


@torch.compiler.assume_constant_result
def _steps(terms: tuple[str, ...], result: str, shapes: tuple[tuple[int, ...], ...]) -> _Steps:
    return _planned(terms, result, shapes)


@lru_cache(maxsize=4096)
def _planned(terms: tuple[str, ...], result: str, shapes: tuple[tuple[int, ...], ...]) -> _Steps:
    """Pairwise contractions; each result is appended to the operands (the data, then the factors)."""
    path, _ = opt_einsum.contract_path(",".join(terms) + "->" + result, *shapes, shapes=True, optimize="auto")
    known, alive, steps = list(terms), list(range(len(terms))), []
    for number, chosen in enumerate(path):
        positions = tuple(alive[k] for k in sorted(chosen))
        alive = [k for k in alive if k not in positions]
        kept = set(result).union(*(known[k] for k in alive))
        # In the order of the alphabet, the row first: the data stay in the layout in which they came.
        inner = "".join(sorted({c for k in positions for c in known[k]} & kept))
        inner = result if number == len(path) - 1 else inner
        steps.append((positions, ",".join(known[k] for k in positions) + "->" + inner))
        alive.append(len(known))
        known.append(inner)
    return tuple(steps)
