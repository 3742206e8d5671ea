r"""Starting weights whose singular values decay exponentially: overestimated ranks, badly conditioned.

In every compressed mode of a Tucker weight the singular values are :math:`\sigma_j \propto D^{-j}` for
:math:`j = 0, 1, …`, not below :math:`10^{-12}` of the largest; the Frobenius norm is that of a dense layer.
``"loose-tucker"`` starts at the same tensor as ``"tucker"``. The other formats have no such singular values
in common; there the same weights :math:`D^{-j}` scale what plays their part (:func:`tapered`): the terms of a
CP sum, the columns of a matrix product, and each bond of a tensor train.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tenfold.linalg import fold, unfold
from tenfold.manifolds import TuckerManifold
from tenfold.nn import LowRankLayer

_FLOOR = 1e-12
_SWEEPS = 10  # the singular values of three-way cores are then exact to about 1e-6


def profile(rank: int, decay: float) -> Tensor:
    """The proportions 1, 1 / decay, 1 / decay², …, at least 1e-12; float64 of shape (rank,)."""
    return (decay ** -torch.arange(rank, dtype=torch.float64)).clamp_min(_FLOOR)


def tapered(factor: Tensor, axis: int, decay: float, share: float) -> Tensor:
    """`factor` with its slices along `axis` scaled by ``profile ** share``.

    If the `share` of all factors that have an index in common add up to one, the index decays by `decay`.
    """
    shape = [1] * factor.ndim
    shape[axis] = -1
    return factor * (profile(factor.shape[axis], decay) ** share).to(factor.dtype).reshape(shape)


@torch.no_grad()
def decay_singular_values_(layer: LowRankLayer, decay: float) -> None:
    """Replace the core of a Tucker layer, drawn anew, so that the mode singular values decay by `decay`.

    Parameters
    ----------
    layer : LowRankLayer
        With a Tucker weight; its bases and its Frobenius norm stay.
    decay : float
        Ratio of successive singular values, at least 1.

    Raises
    ------
    TypeError
        The weight is in another format.
    """
    manifold = layer.manifold
    if not isinstance(manifold, TuckerManifold):
        raise TypeError(f"decaying singular values need a Tucker weight, got {manifold}")
    core, *bases = manifold.unpack_tensor(layer.weight.detach())
    new = _graded_core(tuple(core.shape), len(manifold.modes), decay)
    new = (new * core.double().norm() / new.norm()).to(core)
    layer.weight.copy_(manifold.pack_point(new, *bases))


def _graded_core(shape: tuple[int, ...], compressed: int, decay: float) -> Tensor:
    """A random core in float64 whose first `compressed` unfoldings have orthogonal, decaying rows.

    Unfolding after unfolding gets its singular values replaced by the wanted ones, in turns. Its left
    singular vectors are left out, being a turn of the basis: the core itself is then graded, and keeps its
    small singular values in single precision.
    """
    core = torch.randn(shape, dtype=torch.float64)
    for axis in range(compressed):
        core = tapered(core, axis, decay, 1.0 / compressed)
    for _ in range(_SWEEPS):
        for axis in range(compressed):
            rows = torch.linalg.svd(unfold(core, axis, len(shape)), full_matrices=False)[2]
            sigma = profile(shape[axis], decay)
            core = fold((sigma / sigma.norm())[:, None] * rows, axis, shape)
    return core
