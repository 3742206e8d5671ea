"""What every layer with loose factors shares: a weight that is a product of plain parameters."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tenfold.experiments.decay import tapered

StartRank = float | int | tuple[int, ...]
"""A fraction of the full rank, a number that is lowered to it, or one number for each rank."""


class LooseLayer(nn.Module, abc.ABC):
    """A linear layer or convolution whose weight is a contraction of factors, each an ordinary parameter.

    Parameters
    ----------
    layer : nn.Linear or nn.Conv2d
        The dense layer to stand for: gives shape, bias and, for convolutions, stride, padding and dilation.
    factors : sequence of Tensor
        The initial factors, as ``equation`` contracts them.

    Attributes
    ----------
    equation : str
        Contraction of the factors to the dense weight, in the notation of :func:`torch.einsum`.
    """

    equation: str

    def __init__(self, layer: nn.Linear | nn.Conv2d, factors: Sequence[Tensor]) -> None:
        super().__init__()
        self.dense_shape = tuple(layer.weight.shape)
        self.factors = nn.ParameterList([nn.Parameter(factor.detach().clone()) for factor in factors])
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())

    @abc.abstractmethod
    def forward(self, input: Tensor) -> Tensor:
        """As the dense layer."""

    @classmethod
    @abc.abstractmethod
    def full_rank(cls, shape: Sequence[int]) -> tuple[int, ...]:
        """Ranks of which a fraction is taken, for a dense weight of such a shape."""

    @classmethod
    @abc.abstractmethod
    def factor_shapes(cls, shape: Sequence[int], rank: Sequence[int]) -> list[tuple[int, ...]]:
        """Shapes of the factors."""

    @classmethod
    def random(cls, layer: nn.Linear | nn.Conv2d, rank: StartRank, decay: float | None) -> LooseLayer:
        """Draw factors at which the dense weight has the Frobenius norm that `layer` has by default.

        Entries are normal, in all factors of the same size on average; the bias is that of `layer`.

        Parameters
        ----------
        layer : nn.Linear or nn.Conv2d
            The dense layer to stand for.
        rank : float, int or tuple of int
            A fraction of the full rank; a number, lowered to what is feasible; or one number for each rank.
        decay : float, optional
            Ratio of successive entries of the profile that scales every index that factors have in common.
        """
        shape = tuple(layer.weight.shape)
        factors = [torch.randn(s) for s in cls.factor_shapes(shape, cls.start_rank(shape, rank))]
        names, dense = cls.equation.split("->")
        axes = names.split(",")
        if decay is not None:
            for letter in sorted(set(names) - set(dense) - {","}):
                owners = [k for k, name in enumerate(axes) if letter in name]
                for k in owners:
                    factors[k] = tapered(factors[k], axes[k].index(letter), decay, 1 / len(owners))
        fan_in = math.prod(shape[1:])
        wanted = math.sqrt(math.prod(shape) / (3 * fan_in))  # torch draws with variance 1 / (3 fan_in)
        scale = (wanted / torch.einsum(cls.equation, *factors).norm().item()) ** (1 / len(factors))
        return cls(layer, [scale * factor for factor in factors])

    @classmethod
    def start_rank(cls, shape: Sequence[int], rank: StartRank) -> tuple[int, ...]:
        """The ranks that these mean for a dense weight of such a shape.

        Raises
        ------
        ValueError
            Given one by one, they are not as many as there are, or exceed the full ones.
        """
        full = cls.full_rank(shape)
        if isinstance(rank, tuple):
            if len(rank) != len(full) or any(r > most for r, most in zip(rank, full, strict=True)):
                raise ValueError(
                    f"a weight of shape {tuple(shape)} in this format has ranks up to {full}, not {rank}"
                )
            return rank
        if isinstance(rank, float):
            return tuple(math.ceil(rank * r) for r in full)
        return tuple(min(rank, r) for r in full)

    @property
    def rank(self) -> tuple[int, ...]:
        """Sizes of the indices that factors have in common, in the order of the alphabet."""
        names, dense = self.equation.split("->")
        sizes = {
            letter: size
            for name, factor in zip(names.split(","), self.factors, strict=True)
            for letter, size in zip(name, factor.shape, strict=True)
        }
        return tuple(sizes[letter] for letter in sorted(sizes) if letter not in dense)

    @property
    def stored_numel(self) -> int:
        """Numbers in the factors."""
        return sum(factor.numel() for factor in self.factors)

    @property
    def dense_numel(self) -> int:
        """Numbers in the dense weight."""
        return math.prod(self.dense_shape)

    def dense_weight(self) -> Tensor:
        """The dense weight in the layout of the torch layer; differentiable."""
        return torch.einsum(self.equation, *self.factors)
