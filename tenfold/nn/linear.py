"""Linear layers with a low-rank weight."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from typing_extensions import Self

from tenfold.nn.layer import LowRankLayer, RankLike, tucker_manifold

__all__ = ["TuckerLinear"]


class TuckerLinear(LowRankLayer):
    r"""Drop-in for :class:`torch.nn.Linear` whose weight is a matrix of fixed rank in Tucker form.

    .. math:: y = U_1 C U_2^T x + b

    evaluated from the right, so that the dense weight is never built.

    Parameters
    ----------
    in_features, out_features, bias, device, dtype
        As for :class:`torch.nn.Linear`.
    rank : int, float or sequence of two int
        Start rank: a fraction of each side, one number (both lowered to what is feasible), or the two
        equal ranks of the matrix.
    inverse_free : bool
        Let the backward pass return gradients that divide by no singular value, accurate at any
        conditioning, for a forward and backward pass at twice the ranks.

    Raises
    ------
    ValueError
        If the rank is not feasible.

    Notes
    -----
    Complexity: ``b (n_in r + r^2 + r n_out)`` multiplications for ``b`` rows.

    Examples
    --------
    >>> import torch, tenfold
    >>> layer = tenfold.nn.TuckerLinear(64, 32, rank=4)
    >>> layer(torch.randn(10, 64)).shape, layer.rank
    (torch.Size([10, 32]), (4, 4))
    """

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
        manifold = tucker_manifold((out_features, in_features), rank, (0, 1), inverse_free)
        super().__init__(manifold, out_features if bias else None, device, dtype)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Shape ``(*batch, in_features)`` to ``(*batch, out_features)``."""
        core, left, right = self.manifold.factors(self.weight)
        return F.linear(F.linear(F.linear(input, right.mT), core), left, self.bias)

    @classmethod
    def like(cls, module: nn.Module, *, rank: RankLike) -> Self:  # type: ignore[override]
        """A new layer with the arguments of a dense one; its weights are drawn anew.

        Raises
        ------
        TypeError
            If ``module`` is not a linear layer.
        """
        if not isinstance(module, nn.Linear):
            raise TypeError(f"{cls.__name__} needs a torch.nn.Linear, got {type(module).__name__}")
        weight, bias = module.weight, module.bias is not None
        layer = cls(module.in_features, module.out_features, bias, weight.device, weight.dtype, rank=rank)
        return layer.train(module.training)

    def to_dense(self) -> nn.Linear:
        """The dense layer that computes the same."""
        dense = nn.Linear(
            self.in_features,
            self.out_features,
            self.bias is not None,
            self.weight.device,
            self.weight.dtype,
        )
        self.copy_to_dense(dense)
        return dense

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, rank={self.rank}"
        )
