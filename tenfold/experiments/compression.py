"""How much of a network its factored or pruned layers save."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from tenfold.experiments.loose_layer import LooseLayer
from tenfold.experiments.pruning import pruned_layers
from tenfold.nn import LowRankLayer


@dataclass(frozen=True)
class Compression:
    """Numbers a network stores, and what the same network with dense weights stores.

    Of a pruned layer only the weights that are kept are counted, not the mask.

    Parameters
    ----------
    parameters, dense_parameters : int
        Of the whole network, biases and normalisation included.
    convolutions : float
        1 − stored / dense over the weights of all convolutions, factored or not; 0 without convolutions.
    factored : float
        The same over the weights of the factored or pruned layers; 0 without such layers.
    network : float
        The same over all parameters.
    """

    parameters: int
    dense_parameters: int
    convolutions: float
    factored: float
    network: float

    @classmethod
    def of(cls, model: nn.Module) -> Compression:
        """Count the parameters of `model`."""
        sizes = _sizes(model)
        pruned = pruned_layers(model).values()
        plain = sum(
            module.weight.numel()
            for module in model.modules()
            if isinstance(module, nn.Conv2d) and module not in pruned
        )
        removed = sum(int((layer.get_buffer("weight_mask") == 0).sum()) for layer in pruned)
        parameters = sum(parameter.numel() for parameter in model.parameters()) - removed
        stored, dense = sum(size.stored for size in sizes), sum(size.dense for size in sizes)
        return cls(
            parameters=parameters,
            dense_parameters=parameters - stored + dense,
            convolutions=_saved(
                plain + sum(size.stored for size in sizes if size.convolution),
                plain + sum(size.dense for size in sizes if size.convolution),
            ),
            factored=_saved(stored, dense),
            network=_saved(parameters, parameters - stored + dense),
        )


@dataclass(frozen=True)
class _Size:
    """Numbers that one factored or pruned layer stores, and those of its dense weight."""

    stored: int
    dense: int
    convolution: bool


def _sizes(model: nn.Module) -> list[_Size]:
    sizes = []
    for layer in factored_layers(model).values():
        if isinstance(layer, LooseLayer):
            sizes.append(_Size(layer.stored_numel, layer.dense_numel, len(layer.dense_shape) > 2))
        else:
            sizes.append(_Size(layer.weight.numel(), layer.dense_numel, len(layer.weight.manifold.shape) > 2))
    for pruned in pruned_layers(model).values():
        mask = pruned.get_buffer("weight_mask")
        sizes.append(_Size(int(mask.sum()), mask.numel(), isinstance(pruned, nn.Conv2d)))
    return sizes


def factored_layers(model: nn.Module) -> dict[str, LowRankLayer | LooseLayer]:
    """The factored layers of `model` by name, in the order in which they were registered."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LowRankLayer | LooseLayer)
    }


def ranks(model: nn.Module) -> dict[str, list[int]]:
    """The present ranks of every factored layer; for Tucker one number per mode of its weight."""
    return {name: [int(r) for r in layer.rank] for name, layer in factored_layers(model).items()}


def _saved(stored: int, dense: int) -> float:
    return 1 - stored / dense if dense else 0.0
