"""Linear layers with loose factors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from tenfold.experiments.loose_layer import LooseLayer


class LooseMatrixLinear(LooseLayer):
    """``W = A B``: for a matrix, the product of two factors, a CP sum and a tensor train are the same."""

    equation = "or,ri->oi"

    @classmethod
    def full_rank(cls, shape: Sequence[int]) -> tuple[int, ...]:
        return (min(shape),)

    @classmethod
    def factor_shapes(cls, shape: Sequence[int], rank: Sequence[int]) -> list[tuple[int, ...]]:
        return [(shape[0], rank[0]), (rank[0], shape[1])]

    def forward(self, input: Tensor) -> Tensor:  # (*batch, in) -> (*batch, out)
        left, right = self.factors
        return F.linear(F.linear(input, right), left, self.bias)


class LooseTuckerLinear(LooseLayer):
    """``W = U C V^T``."""

    equation = "ab,oa,ib->oi"

    @classmethod
    def full_rank(cls, shape: Sequence[int]) -> tuple[int, ...]:
        return (min(shape), min(shape))

    @classmethod
    def factor_shapes(cls, shape: Sequence[int], rank: Sequence[int]) -> list[tuple[int, ...]]:
        return [(rank[0], rank[1]), (shape[0], rank[0]), (shape[1], rank[1])]

    def forward(self, input: Tensor) -> Tensor:  # (*batch, in) -> (*batch, out)
        core, left, right = self.factors
        return F.linear(F.linear(F.linear(input, right.mT), core), left, self.bias)
