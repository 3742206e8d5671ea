"""Putting the layers of an existing network on manifolds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase

import torch
from torch import nn

from tenfold.nn.conv import TuckerConv2d
from tenfold.nn.formats import RankLike
from tenfold.nn.layer import LowRankLayer
from tenfold.nn.linear import TuckerLinear

__all__ = ["FactorizationReport", "FactorizedLayer", "Start", "factorize"]


class Start(str, Enum):
    """Where the weights of a factorized layer start."""

    RANDOM = "random"
    """Drawn anew at the given rank: no warm-up with the full model."""
    DECOMPOSE = "decompose"
    """The best approximation of the dense weights."""


@dataclass(frozen=True)
class FactorizedLayer:
    """What happened to one layer.

    Attributes
    ----------
    name : str
        Name of the module in the model.
    rank : tuple of int
        Its ranks.
    stored, dense : int
        Numbers in the factors and in the dense weight.
    """

    name: str
    rank: tuple[int, ...]
    stored: int
    dense: int


@dataclass(frozen=True)
class FactorizationReport:
    """What :func:`factorize` did.

    Attributes
    ----------
    layers : tuple of FactorizedLayer
        The layers that are low-rank now.
    left : dict
        Name and reason of each linear or convolutional layer that stayed dense.
    """

    layers: tuple[FactorizedLayer, ...]
    left: dict[str, str]

    @property
    def compression(self) -> float:
        """``1 - stored / dense`` over the factorized weights."""
        dense = sum(layer.dense for layer in self.layers)
        return 1.0 - sum(layer.stored for layer in self.layers) / dense if dense else 0.0

    def __str__(self) -> str:
        width = max((len(name) for name in [*(layer.name for layer in self.layers), *self.left]), default=4)
        rows = [f"{'layer':<{width}}  {'rank':<16}  {'stored':>10}  {'dense':>10}"]
        for layer in self.layers:
            rank = "x".join(map(str, layer.rank))
            rows.append(f"{layer.name:<{width}}  {rank:<16}  {layer.stored:>10,}  {layer.dense:>10,}")
        rows += [f"{name:<{width}}  dense: {reason}" for name, reason in self.left.items()]
        return "\n".join([*rows, f"compression of the factorized weights: {self.compression:.1%}"])


def factorize(
    model: nn.Module,
    *,
    rank: RankLike = 0.25,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    init: Start | str = Start.DECOMPOSE,
) -> FactorizationReport:
    """Replace linear and convolutional layers by low-rank ones, in place.

    Parameters
    ----------
    model : torch.nn.Module
        The network; its layers are replaced, everything else stays.
    rank : int, float or sequence of int
        Start rank of every layer: a fraction of every compressed mode or a number.
    include : sequence of str or None
        Names of layers, or patterns in the manner of :mod:`fnmatch`; None means all.
    exclude : sequence of str
        Names or patterns of layers that stay dense.
    init : Start or str
        ``"decompose"`` approximates the dense weights, ``"random"`` draws new ones.

    Returns
    -------
    FactorizationReport
        What was done, and why some layers stayed dense.

    Raises
    ------
    ValueError
        If a name or pattern fits no layer, or a rank is not feasible; the model is then unchanged.
    """
    start = Start(init)
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name
    }
    for pattern in [*(include or ()), *exclude]:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise ValueError(
                f"no linear or convolutional layer is named {pattern!r}; there are {list(layers)}"
            )
    new: dict[str, LowRankLayer] = {}
    left: dict[str, str] = {}
    for name, module in layers.items():
        reason = _stays(name, module, include, exclude)
        if reason:
            left[name] = reason
            continue
        cls: type[LowRankLayer] = TuckerConv2d if isinstance(module, nn.Conv2d) else TuckerLinear
        make = cls.like if start is Start.RANDOM else cls.from_dense
        new[name] = make(module, rank=rank)
    for name, layer in new.items():
        model.set_submodule(name, layer)
    return FactorizationReport(
        tuple(
            FactorizedLayer(n, layer.rank, layer.manifold.size, layer.dense_numel) for n, layer in new.items()
        ),
        left,
    )


def _stays(name: str, module: nn.Module, include: Sequence[str] | None, exclude: Sequence[str]) -> str:
    """Why a layer stays dense, or nothing."""
    if any(fnmatchcase(name, pattern) for pattern in exclude):
        return "excluded"
    if include is not None and not any(fnmatchcase(name, pattern) for pattern in include):
        return "not included"
    if type(module) not in (nn.Linear, nn.Conv2d):
        return f"a {type(module).__name__} may compute something else than its base class"
    if isinstance(module, nn.Conv2d) and module.groups != 1:
        return f"it has {module.groups} groups"
    weight = module.get_parameter("weight")
    if weight.dtype not in (torch.float32, torch.float64):
        return f"weights of {weight.dtype} cannot be decomposed"
    return ""
