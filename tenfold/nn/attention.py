"""Attention with low-rank projections."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from typing_extensions import Self

from tenfold.nn.attention_mask import added_mask
from tenfold.nn.formats import Format, RankLike
from tenfold.nn.layer import check_parameters
from tenfold.nn.linear import Linear

__all__ = ["MultiheadAttention"]

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


class MultiheadAttention(nn.Module):
    """Drop-in for :class:`torch.nn.MultiheadAttention` whose four projections are low-rank.

    The projections are layers of their own, ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``, each a
    :class:`Linear` with a rank of its own. Inside :class:`torch.nn.TransformerEncoderLayer` the layer says
    by its attributes that torch's fused inference path, which reads dense weights, is not for it.

    Parameters
    ----------
    embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype
        As for :class:`torch.nn.MultiheadAttention`.
    format : Format or str
        How the four weights are stored.
    rank : int, float or sequence of int
        Start rank of each projection, as for :class:`Linear`.
    inverse_free : bool
        As for :class:`Linear`.

    Raises
    ------
    ValueError
        If the rank is not feasible, or ``num_heads`` does not divide ``embed_dim``.

    Notes
    -----
    Initial statistics are those of torch: Glorot's for the projections of the input, zero biases.

    Examples
    --------
    >>> import torch, tenfold
    >>> attention = tenfold.nn.MultiheadAttention(64, 4, batch_first=True, rank=8)
    >>> x = torch.randn(2, 10, 64)
    >>> output, weights = attention(x, x, x)
    >>> output.shape, weights.shape
    (torch.Size([2, 10, 64]), torch.Size([2, 10, 10]))
    """

    # What torch.nn.TransformerEncoderLayer and TransformerEncoder read before they take the fused path.
    _qkv_same_embed_dim = False
    in_proj_weight = None
    in_proj_bias = None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        format: Format | str = Format.FIXED_RANK,
        rank: RankLike,
        inverse_free: bool = False,
    ):
        super().__init__()
        if embed_dim <= 0 or num_heads <= 0 or embed_dim % num_heads:
            raise ValueError(
                f"num_heads must divide embed_dim, both positive, got {num_heads} and {embed_dim}"
            )
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.dropout, self.batch_first, self.add_zero_attn = dropout, batch_first, add_zero_attn
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        for name, into in zip(_PROJECTIONS, (embed_dim, self.kdim, self.vdim, embed_dim), strict=True):
            layer = Linear(
                into, embed_dim, bias, device, dtype, format=format, rank=rank, inverse_free=inverse_free
            )
            self.add_module(name, layer)
        self.bias_k: nn.Parameter | None = None
        self.bias_v: nn.Parameter | None = None
        if add_bias_kv:
            self.bias_k = nn.Parameter(torch.empty(1, 1, embed_dim, device=device, dtype=dtype))
            self.bias_v = nn.Parameter(torch.empty(1, 1, embed_dim, device=device, dtype=dtype))
        self.reset_parameters()

    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    out_proj: Linear

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all weights anew, at their current ranks."""
        same = self.kdim == self.vdim == self.embed_dim
        for layer in (self.q_proj, self.k_proj, self.v_proj):
            # Glorot's variance; torch draws the three as one matrix where they have the same shape.
            fans = 4 * self.embed_dim if same else self.embed_dim + layer.in_features
            if isinstance(layer, Linear):
                layer._draw(2.0, fans)
            else:  # one that factorize left dense
                nn.init.uniform_(layer.weight, -math.sqrt(6.0 / fans), math.sqrt(6.0 / fans))
        self.out_proj.reset_parameters()
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            if layer.bias is not None:
                layer.bias.zero_()
        if self.bias_k is not None and self.bias_v is not None:
            nn.init.xavier_normal_(self.bias_k)
            nn.init.xavier_normal_(self.bias_v)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend; arguments, shapes and results are those of :class:`torch.nn.MultiheadAttention`.

        Parameters
        ----------
        query, key, value : torch.Tensor
            Shapes ``(l, n, embed_dim)``, ``(s, n, kdim)``, ``(s, n, vdim)``, with the batch ``n`` first if
            ``batch_first``, or without one.
        key_padding_mask : torch.Tensor or None
            Shape ``(n, s)`` or ``(s,)``; True, or the number added to the scores, for keys to ignore.
        need_weights : bool
            Return the attention weights; False uses torch's fused attention.
        attn_mask : torch.Tensor or None
            Shape ``(l, s)`` or ``(n num_heads, l, s)``, boolean or added to the scores.
        average_attn_weights : bool
            Average the weights over the heads.
        is_causal : bool
            A hint that ``attn_mask``, which must be given, is the causal mask.

        Returns
        -------
        output : torch.Tensor
            The shape of ``query``.
        weights : torch.Tensor or None
            Shape ``([n,] l, s)``, or ``([n,] num_heads, l, s)`` without the average.

        Raises
        ------
        ValueError
            If shapes do not fit, a mask consists of integers, or ``is_causal`` comes without a mask.
        """
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is a hint about attn_mask and needs it")
        shapes = [tuple(tensor.shape) for tensor in (query, key, value)]
        if query.ndim not in (2, 3) or len({len(shape) for shape in shapes}) > 1:
            raise ValueError(f"query, key and value must all have two axes, or a batch as well, got {shapes}")
        batched = query.ndim == 3
        if not batched:
            query, key, value = (tensor.unsqueeze(0) for tensor in (query, key, value))
            if key_padding_mask is not None:
                key_padding_mask = key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
        if key.shape[:2] != value.shape[:2] or query.shape[0] != key.shape[0]:
            raise ValueError(
                f"query, key and value must have the same batch, key and value one length, got {shapes}"
            )
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        k, v = self._extended(k, self.bias_k), self._extended(v, self.bias_v)
        q, k, v = (t.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for t in (q, k, v))
        mask = added_mask(q, key.shape[1], attn_mask, key_padding_mask)
        if mask is not None:  # the learned and the zero key are never masked
            mask = F.pad(mask, (0, k.shape[2] - key.shape[1]))
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q / math.sqrt(self.head_dim)) @ k.mT
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = F.dropout(weights, dropout)
            heads = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            heads = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        output = self.out_proj(heads.transpose(1, 2).flatten(2))
        if not batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights

    def _extended(self, tensor: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Keys or values with the learned one and the zero one behind them, shape ``(n, s', embed_dim)``."""
        if bias is not None:
            tensor = torch.cat([tensor, bias.expand(len(tensor), 1, -1)], dim=1)
        return F.pad(tensor, (0, 0, 0, 1)) if self.add_zero_attn else tensor

    @classmethod
    def _arguments(cls, module: Any) -> dict[str, Any]:
        return {
            **{
                name: getattr(module, name)
                for name in ("embed_dim", "num_heads", "dropout", "add_zero_attn", "kdim", "vdim")
            },
            "batch_first": module.batch_first,
            "bias": module.out_proj.bias is not None,
            "add_bias_kv": module.bias_k is not None,
        }

    @classmethod
    @torch.no_grad()
    def split(cls, module: nn.Module) -> Self:
        """A layer whose projections are still dense, copies of those of a torch layer.

        Parameters
        ----------
        module : torch.nn.MultiheadAttention
            The dense layer; it is not changed.

        Returns
        -------
        MultiheadAttention
            With a :class:`torch.nn.Linear` for every projection, each to be replaced, or not.

        Raises
        ------
        TypeError
            If ``module`` is not a :class:`torch.nn.MultiheadAttention`.
        """
        if not isinstance(module, nn.MultiheadAttention):
            raise TypeError(
                f"{cls.__name__} needs a torch.nn.MultiheadAttention, got {type(module).__name__}"
            )
        layer = cls(**cls._arguments(module), device="meta", rank=1).train(module.training)
        out, packed = module.out_proj, module.in_proj_weight
        if packed is None:
            weights = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
        else:
            weights = list(packed.chunk(3))
        biases = [None] * 3 if module.in_proj_bias is None else list(module.in_proj_bias.chunk(3))
        wanted = [w.requires_grad if packed is None else packed.requires_grad for w in weights]
        wanted_bias = module.in_proj_bias is not None and module.in_proj_bias.requires_grad
        parts = zip(weights, biases, wanted, [wanted_bias] * 3, strict=True)
        for name, part in zip(_PROJECTIONS[:3], parts, strict=True):
            layer.add_module(name, _linear(*part))
        bias = out.bias
        last = _linear(out.weight, bias, out.weight.requires_grad, bias is not None and bias.requires_grad)
        layer.add_module("out_proj", last)
        for name in ("bias_k", "bias_v"):
            if getattr(module, name) is not None:
                old = getattr(module, name)
                setattr(layer, name, nn.Parameter(old.detach().clone(), old.requires_grad))
        return layer

    @classmethod
    def from_dense(
        cls, module: nn.Module, *, rank: RankLike | None = None, tol: float | None = None, **options: Any
    ) -> Self:
        """A layer that approximates a dense one, each projection as :meth:`LowRankLayer.from_dense` does."""
        layer = cls.split(module)
        own = ("in_proj_weight", *(f"{name}_weight" for name in _PROJECTIONS[:3]), "in_proj_bias")
        check_parameters(module, *own, "bias_k", "bias_v")
        check_parameters(module.get_submodule("out_proj"), "weight", "bias")
        for name in _PROJECTIONS:
            low_rank = Linear.from_dense(layer.get_submodule(name), rank=rank, tol=tol, **options)
            layer.add_module(name, low_rank)
        return layer

    @torch.no_grad()
    def to_dense(self) -> nn.MultiheadAttention:
        """The dense layer that computes the same, of projections dense or not.

        Raises
        ------
        ValueError
            If a projection is something else, for instance has adapters.
        """
        layers = [self.q_proj, self.k_proj, self.v_proj, self.out_proj]
        for name, layer in zip(_PROJECTIONS, layers, strict=True):
            if type(layer) is not nn.Linear and not isinstance(layer, Linear):
                raise ValueError(
                    f"{name} is of the type {type(layer).__name__}, of which torch.nn.MultiheadAttention "
                    "would read the weight alone"
                )
        dense = [layer.to_dense() if isinstance(layer, Linear) else layer for layer in layers]
        weights = [layer.get_parameter("weight") for layer in dense]
        module = nn.MultiheadAttention(
            **self._arguments(self), device=weights[0].device, dtype=weights[0].dtype
        )
        pairs = [(module.out_proj.weight, weights[3:])]
        if module.in_proj_weight is None:
            own = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
            pairs += [(parameter, [weight]) for parameter, weight in zip(own, weights[:3], strict=True)]
        else:
            pairs.append((module.in_proj_weight, weights[:3]))
        if module.in_proj_bias is not None:
            biases = [layer.get_parameter("bias") for layer in dense]
            pairs += [(module.in_proj_bias, biases[:3]), (module.out_proj.bias, biases[3:])]
        for parameter, parts in pairs:
            parameter.copy_(torch.cat([part.detach() for part in parts]))
            parameter.requires_grad_(any(part.requires_grad for part in parts))
        for name in ("bias_k", "bias_v"):
            if getattr(self, name) is not None:
                own = getattr(self, name)
                getattr(module, name).copy_(own).requires_grad_(own.requires_grad)
        return module.train(self.training)

    def extra_repr(self) -> str:
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, batch_first={self.batch_first}"


def _linear(weight: torch.Tensor, bias: torch.Tensor | None, wanted: bool, wanted_bias: bool) -> nn.Linear:
    """A dense layer with copies of a weight and a bias."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), wanted)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), wanted_bias)
    return layer
