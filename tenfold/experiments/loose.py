"""Networks whose weights are loose factors: the same formats, trained by ordinary backpropagation.

``loose-tucker`` starts at the very tensors at which ``tucker`` starts, with orthonormal bases. The others
draw normal factors of equal size at which the dense weight has the Frobenius norm of a dense layer. A linear
layer is a matrix, so CP, tensor train and matrix format are one and the same there.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from tenfold.experiments.decay import decay_singular_values_
from tenfold.experiments.loose_conv import LooseCPConv2d, LooseMatrixConv2d, LooseTTConv2d, LooseTuckerConv2d
from tenfold.experiments.loose_layer import LooseLayer, StartRank
from tenfold.experiments.loose_linear import LooseMatrixLinear, LooseTuckerLinear
from tenfold.nn import LowRankLayer, factorize

_CONVOLUTIONS: dict[str, type[LooseLayer]] = {
    "loose-tucker": LooseTuckerConv2d,
    "loose-cp": LooseCPConv2d,
    "loose-tt": LooseTTConv2d,
    "loose-matrix": LooseMatrixConv2d,
}


def layer_class(method: str, order: int) -> type[LooseLayer]:
    """The layer of a loose method for a weight with so many modes, 2 or 4."""
    if order == 4:
        return _CONVOLUTIONS[method]
    return LooseTuckerLinear if method == "loose-tucker" else LooseMatrixLinear


def loosen(model: nn.Module, method: str, ranks: Mapping[str, StartRank], decay: float | None = None) -> None:
    """Replace layers of `model` by ones with loose factors, in place.

    Parameters
    ----------
    model : nn.Module
        With dense layers.
    method : {"loose-tucker", "loose-cp", "loose-tt", "loose-matrix"}
        The format.
    ranks : mapping of str to float, int or tuple of int
        Linear layers and convolutions to replace, and the rank of each: a fraction of the full rank, a
        number, or one number for each rank; see ``LooseLayer.full_rank``.
    decay : float, optional
        Start with decaying singular values; see :mod:`tenfold.experiments.decay`.

    Raises
    ------
    ValueError
        A convolution has groups or is padded with something else than zeros, or a layer does not have the
        ranks that are given for it.
    """
    if method == "loose-tucker":
        dense = {name: model.get_submodule(name) for name in ranks}
        start_on_manifolds(model, ranks, decay)
        for name, layer in dense.items():
            model.set_submodule(name, _loosened(model.get_submodule(name), layer))
        return
    for name, rank in ranks.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        model.set_submodule(name, layer_class(method, layer.weight.ndim).random(layer, rank, decay))


def start_on_manifolds(model: nn.Module, ranks: Mapping[str, StartRank], decay: float | None = None) -> None:
    """Put layers of `model` on Tucker manifolds, drawn anew, in place; arguments as for :func:`loosen`."""
    for name, rank in ranks.items():
        factorize(model, rank=rank, include=[name], init="random")
    if decay is not None:
        for name in ranks:
            layer = model.get_submodule(name)
            assert isinstance(layer, LowRankLayer)
            decay_singular_values_(layer, decay)


def _loosened(layer: nn.Module, dense: nn.Module) -> LooseLayer:
    """The factors of a Tucker layer as plain parameters; the dense layer gives the geometry."""
    assert isinstance(layer, LowRankLayer)
    assert isinstance(dense, nn.Linear | nn.Conv2d)
    factors = layer.manifold.unpack_tensor(layer.weight.detach())
    loose = layer_class("loose-tucker", dense.weight.ndim)(dense, factors)
    loose.bias = layer.bias
    return loose
