"""Embeddings with a low-rank table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn import functional as F

from tenfold.manifolds import TensorTrainManifold, TreeManifold
from tenfold.nn.formats import Format, RankLike, fixed_rank_manifold, tensor_train_manifold
from tenfold.nn.layer import LowRankLayer
from tenfold.nn.layout import Layout, balanced, tensorized

__all__ = ["Embedding"]


class Embedding(LowRankLayer):
    r"""Drop-in for :class:`torch.nn.Embedding` whose table ``[words, features]`` is a low-rank matrix.

    Only the rows of the factors that the indices name are touched; neither the table nor its gradient is
    ever dense. In the format ``"tensor-train"`` (TT embedding) an index is written with digits
    ``i = (i_1, i_2, ...)``, each of which selects a slice of a core.

    Parameters
    ----------
    num_embeddings, embedding_dim, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse
        As for :class:`torch.nn.Embedding`. The row of ``padding_idx`` is zero and stays zero. ``max_norm``,
        ``scale_grad_by_freq`` and ``sparse`` change or address single rows of a dense table and are refused.
    device, dtype
        As for :class:`torch.nn.Embedding`.
    format : Format or str
        ``"fixed-rank"`` or ``"tensor-train"``.
    rank : int, float or sequence of int
        Start rank: a fraction of what each rank can be, one number for all of them (both lowered to what
        is feasible), or one number for each.
    shapes : tuple of two sequences of int or None
        For ``"tensor-train"``, the sizes ``((v_1, v_2, ...), (e_1, e_2, ...))`` of words and features. The
        first may multiply to more than ``num_embeddings``. None chooses them.
    inverse_free : bool
        As for :class:`Linear`.

    Raises
    ------
    ValueError
        If the rank is not feasible, shapes do not fit, or an argument is one of the refused.

    Notes
    -----
    Complexity for each index: ``r^2 + r e`` multiplications at fixed rank, and about ``e r^2`` for a Tensor
    Train, whose largest array has ``max_k r^2 e_k`` numbers for each index.

    References
    ----------
    Hrinchuk et al., "Tensorized embedding layers", Findings of EMNLP 2020 (arXiv 1901.10787).

    Examples
    --------
    >>> import torch, tenfold
    >>> layer = tenfold.nn.Embedding(1000, 64, format="tensor-train", rank=8)
    >>> layer(torch.tensor([[0, 999, 5]])).shape, layer.manifold.factor_shapes
    (torch.Size([1, 3, 64]), ((10, 4, 8), (8, 10, 4, 8), (8, 10, 4)))
    >>> round(layer.compression, 2)
    0.95
    """

    dense_type = nn.Embedding
    formats = (Format.FIXED_RANK, Format.TENSOR_TRAIN)

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        format: Format | str = Format.FIXED_RANK,
        rank: RankLike,
        shapes: tuple[Sequence[int], Sequence[int]] | None = None,
        inverse_free: bool = False,
    ):
        self.format = Format(format)
        if self.format not in self.formats:
            raise ValueError(
                f"Embedding has the formats {[f.value for f in self.formats]}, got {self.format.value!r}"
            )
        refused = {"max_norm": max_norm, "scale_grad_by_freq": scale_grad_by_freq, "sparse": sparse}
        for name, value in refused.items():
            if value:
                raise ValueError(f"{name}={value} needs single rows of a dense table; Embedding has none")
        # torch checks the arguments; on the meta device it costs nothing.
        geometry = nn.Embedding(num_embeddings, embedding_dim, padding_idx, device="meta")
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = geometry.padding_idx
        sides = (num_embeddings, embedding_dim)
        layout = Layout.plain(sides)
        manifold: TreeManifold
        if self.format is Format.TENSOR_TRAIN:
            words, features = _shapes(*sides) if shapes is None else shapes
            if (
                len(words) != len(features)
                or math.prod(words) < num_embeddings
                or math.prod(features) != embedding_dim
            ):
                raise ValueError(
                    f"shapes must be two of equal length, with a product of at least {num_embeddings} and "
                    f"of {embedding_dim}, got {(words, features)}"
                )
            layout = Layout.plain(sides, (*words, *features))
            manifold = tensor_train_manifold(layout.tensor, rank, len(words), inverse_free)
        elif shapes is not None:
            raise ValueError(f"shapes belong to the format 'tensor-train', not to {self.format.value!r}")
        else:
            manifold = fixed_rank_manifold(sides, rank, inverse_free)
        super().__init__(manifold, layout, None, device, dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Indices of any shape ``(*)`` to ``(*, embedding_dim)``."""
        manifold = self.manifold
        factors = manifold.factors(self.weight)
        index = input.reshape(-1)
        if isinstance(manifold, TensorTrainManifold):
            rows = self._train(index, manifold, factors)
        else:
            core, words, features = factors
            rows = F.linear(F.linear(F.embedding(index, words), core.mT), features)
        rows = rows.reshape(*input.shape, self.embedding_dim)
        if self.padding_idx is None:
            return rows
        return rows.masked_fill((input == self.padding_idx).unsqueeze(-1), 0.0)

    def _train(
        self, index: torch.Tensor, manifold: TensorTrainManifold, cores: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Rows of a Tensor Train matrix, shape ``(m, embedding_dim)``."""
        # Rows that fill up the shapes have no meaning. Elsewhere than here, asking would wait for the device.
        asks = index.device.type == "cpu" and index.numel() and not torch.compiler.is_compiling()
        asks = asks and not is_functorch_wrapped_tensor(index)  # which vmap cannot answer
        if asks and not 0 <= index.min() <= index.max() < self.num_embeddings:
            raise IndexError(f"an index of {self} lies outside 0 ... {self.num_embeddings - 1}")
        count, last = index.shape[0], len(cores) - 1
        below, width = math.prod(manifold.shape[: manifold.rows]), 1
        rows = cores[0].new_ones(count, 1, 1)
        for k, core in enumerate(cores):
            below //= manifold.shape[k]
            width *= manifold.shape[manifold.rows + k]
            digit = index // below
            index = index - digit * below
            # The digit to the front, (v_k, r e_k r'); the ends of the train have no r or r'.
            slices = (core if k == 0 else core.movedim(1, 0)).flatten(1)
            chosen = F.embedding(digit, slices)
            chosen = chosen.reshape(count, rows.shape[2], slices.shape[1] // rows.shape[2])
            rows = torch.bmm(rows, chosen).reshape(count, width, core.shape[-1] if k < last else 1)
        return rows.flatten(1)

    def dense_weight(self) -> torch.Tensor:
        weight = super().dense_weight()
        if self.padding_idx is None:
            return weight
        padding = torch.arange(len(weight), device=weight.device) == self.padding_idx
        return weight.masked_fill(padding.unsqueeze(-1), 0.0)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the table anew, at the current rank, with entries of variance 1 as torch does."""
        self._draw(1.0, 1.0)

    @classmethod
    def _arguments(cls, module: Any) -> dict[str, Any]:
        arguments = {
            "num_embeddings": module.num_embeddings,
            "embedding_dim": module.embedding_dim,
            "padding_idx": module.padding_idx,
        }
        if isinstance(module, nn.Embedding):
            arguments |= {
                "max_norm": module.max_norm,
                "scale_grad_by_freq": module.scale_grad_by_freq,
                "sparse": module.sparse,
            }
            padding = module.padding_idx
            if padding is not None and not module.weight.is_meta and module.weight[padding].any():
                raise ValueError(f"the row of padding_idx={padding} is not zero, as it would be here")
        return arguments

    @property
    def multiplications(self) -> int:
        manifold = self.manifold
        if not isinstance(manifold, TensorTrainManifold):
            return manifold.size - math.prod(manifold.factor_shapes[1])
        total, features = 0, 1
        for k, shape in enumerate(manifold.factor_shapes[1:], start=1):
            features *= manifold.shape[manifold.rows + k - 1]
            total += features * math.prod(shape) // manifold.shape[k]
        return total

    @property
    def dense_multiplications(self) -> int:
        """None: a dense table is only read."""
        return 0

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return (
            f"{self.num_embeddings}, {self.embedding_dim}{padding}, "
            f"format={self.format.value}, rank={self.rank}"
        )


def _shapes(words: int, features: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes of words and features; the equal sizes whose product is just enough words."""
    cores = len(tensorized(words, features)[0])
    sizes = [math.ceil(words ** (1 / cores) - 1e-9)] * cores
    for k in range(cores):
        while math.prod(sizes) // sizes[k] * (sizes[k] - 1) >= words:
            sizes[k] -= 1
    return tuple(sizes), balanced(features, cores)[::-1]
