"""Linear layers with a low-rank weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tenfold.manifolds import TensorTrainManifold, TreeManifold
from tenfold.nn.contraction import contract
from tenfold.nn.formats import (
    Format,
    RankLike,
    fixed_rank_manifold,
    tensor_train_manifold,
    tucker_manifold,
)
from tenfold.nn.layer import LowRankLayer
from tenfold.nn.layout import Layout, tensorized

__all__ = ["Linear", "TuckerLinear"]


class Linear(LowRankLayer):
    r"""Drop-in for :class:`torch.nn.Linear` whose weight ``[out, in]`` is a low-rank matrix.

    In the formats ``"fixed-rank"`` and ``"tucker"`` it computes

    .. math:: y = U_1 C U_2^T x + b

    from the right, so that the dense weight is never built. In the format ``"tensor-train"`` both features
    are tensorized, ``out = m_1 m_2 ...`` and ``in = n_1 n_2 ...``, the cores carry pairs ``(m_k, n_k)``, and
    :func:`~tenfold.nn.contract` applies them.

    Parameters
    ----------
    in_features, out_features, bias, device, dtype
        As for :class:`torch.nn.Linear`.
    format : Format or str
        How the weight is stored.
    rank : int, float or sequence of int
        Start rank: a fraction of what each rank can be, one number for all of them (both lowered to what
        is feasible), or one number for each.
    shapes : tuple of two sequences of int or None
        For ``"tensor-train"``, the sizes ``((m_1, m_2, ...), (n_1, n_2, ...))`` of the tensorized output
        and input features; None chooses them.
    inverse_free : bool
        Let the backward pass return gradients that divide by no singular value, accurate at any
        conditioning, for a forward and backward pass at twice the ranks.

    Raises
    ------
    ValueError
        If the rank is not feasible, or shapes do not multiply to the features.

    Notes
    -----
    Complexity: ``b (n_in r + r^2 + r n_out)`` multiplications for ``b`` rows of a matrix of rank ``r``; for
    ``"tensor-train"`` see :func:`~tenfold.nn.contract`.

    Examples
    --------
    >>> import torch, tenfold
    >>> layer = tenfold.nn.Linear(64, 32, format="tensor-train", rank=4)
    >>> layer(torch.randn(10, 64)).shape, layer.manifold.factor_shapes
    (torch.Size([10, 32]), ((4, 8, 4), (4, 8, 8)))
    >>> round(layer.compression, 2)
    0.81
    """

    dense_type = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        format: Format | str = Format.FIXED_RANK,
        rank: RankLike,
        shapes: tuple[Sequence[int], Sequence[int]] | None = None,
        inverse_free: bool = False,
    ):
        self.format = Format(format)
        sides = (out_features, in_features)
        layout = Layout.plain(sides)
        manifold: TreeManifold
        if self.format is Format.TENSOR_TRAIN:
            rows, columns = tensorized(*sides) if shapes is None else shapes
            if (math.prod(rows), math.prod(columns)) != sides or len(rows) != len(columns):
                raise ValueError(
                    f"shapes must be two of equal length with the products {sides}, got {(rows, columns)}"
                )
            layout = Layout.plain(sides, (*rows, *columns))
            manifold = tensor_train_manifold(layout.tensor, rank, len(rows), inverse_free)
        elif shapes is not None:
            raise ValueError(f"shapes belong to the format 'tensor-train', not to {self.format.value!r}")
        elif self.format is Format.TUCKER:
            manifold = tucker_manifold(sides, rank, (0, 1), inverse_free)
        else:
            manifold = fixed_rank_manifold(sides, rank, inverse_free)
        super().__init__(manifold, layout, out_features if bias else None, device, dtype)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Shape ``(*batch, in_features)`` to ``(*batch, out_features)``."""
        manifold = self.manifold
        if not isinstance(manifold, TensorTrainManifold):
            # A fixed order, whose last product takes the bias along.
            core, left, right = manifold.factors(self.weight)
            return F.linear(F.linear(F.linear(input, right.mT), core), left, self.bias)
        if input.shape[-1] != self.in_features:
            raise ValueError(f"{self} got an input of {input.shape[-1]} features")
        columns = manifold.shape[manifold.rows :]
        modes = range(manifold.rows, 2 * manifold.rows)
        batch = input.shape[:-1]
        output = contract(manifold, self.weight, input.reshape(*batch, *columns), modes)
        output = output.reshape(*batch, self.out_features)
        return output if self.bias is None else output + self.bias

    def core_gradient(self, weight: torch.Tensor, grad: torch.Tensor, *inputs: Any) -> torch.Tensor | None:
        manifold = weight.manifold  # type: ignore[attr-defined]
        if type(self).forward is not Linear.forward or isinstance(manifold, TensorTrainManifold):
            return None
        _, left, right = manifold.factors(weight)
        (input,) = inputs
        into, out = input @ right, grad @ left
        return out.reshape(-1, out.shape[-1]).mT @ into.reshape(-1, into.shape[-1])

    @classmethod
    def _arguments(cls, module: Any) -> dict[str, Any]:
        return {
            "in_features": module.in_features,
            "out_features": module.out_features,
            "bias": module.bias is not None,
        }

    @property
    def multiplications(self) -> int:
        manifold = self.manifold
        if not isinstance(manifold, TensorTrainManifold):
            return manifold.size
        # From the last core to the first, one row at a time.
        rows, total = manifold.rows, 0
        for k, shape in enumerate(manifold.factor_shapes):
            total += (
                math.prod(shape)
                * math.prod(manifold.shape[rows : rows + k])
                * math.prod(manifold.shape[k + 1 : rows])
            )
        return total

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, format={self.format.value}, rank={self.rank}"
        )


class TuckerLinear(Linear):
    """:class:`Linear` in the format ``"tucker"``.

    Parameters
    ----------
    in_features, out_features, bias, device, dtype
        As for :class:`torch.nn.Linear`.
    rank : int, float or sequence of two int
        Start rank: a fraction of each side, one number (both lowered to what is feasible), or the two
        equal ranks of the matrix.
    inverse_free : bool
        As for :class:`Linear`.

    Examples
    --------
    >>> import torch, tenfold
    >>> layer = tenfold.nn.TuckerLinear(64, 32, rank=4)
    >>> layer(torch.randn(10, 64)).shape, layer.rank
    (torch.Size([10, 32]), (4, 4))
    """

    formats = (Format.TUCKER,)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rank: RankLike,
        inverse_free: bool = False,
    ):
        super().__init__(
            in_features,
            out_features,
            bias,
            device,
            dtype,
            format=Format.TUCKER,
            rank=rank,
            inverse_free=inverse_free,
        )
