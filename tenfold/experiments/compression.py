"""How much of a network its factored layers save."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from tenfold.nn import LowRankLayer


@dataclass(frozen=True)
class Compression:
    """Numbers a network stores, and what the same network with dense weights stores.

    Parameters
    ----------
    parameters, dense_parameters : int
        Of the whole network, biases and normalisation included.
    convolutions : float
        1 − stored / dense over the weights of all convolutions, factored or not; 0 without convolutions.
    factored : float
        The same over the weights of the factored layers; 0 without factored layers.
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
        parameters = sum(parameter.numel() for parameter in model.parameters())
        layers = low_rank_layers(model).values()
        stored = sum(layer.weight.numel() for layer in layers)
        dense = sum(layer.dense_numel for layer in layers)
        factored_convolutions = [layer for layer in layers if len(layer.weight.manifold.shape) > 2]
        plain = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Conv2d))
        return cls(
            parameters=parameters,
            dense_parameters=parameters - stored + dense,
            convolutions=_saved(
                plain + sum(layer.weight.numel() for layer in factored_convolutions),
                plain + sum(layer.dense_numel for layer in factored_convolutions),
            ),
            factored=_saved(stored, dense),
            network=_saved(parameters, parameters - stored + dense),
        )


def low_rank_layers(model: nn.Module) -> dict[str, LowRankLayer]:
    """The factored layers of `model` by name, in the order in which they were registered."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRankLayer)}


def ranks(model: nn.Module) -> dict[str, list[int]]:
    """The present rank of every factored layer, one number per mode of its weight."""
    return {name: [int(r) for r in layer.rank] for name, layer in low_rank_layers(model).items()}


def _saved(stored: int, dense: int) -> float:
    return 1 - stored / dense if dense else 0.0
