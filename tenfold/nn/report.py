"""What happened to the layers of a model that was factorized."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FactorizationReport", "FactorizedLayer"]


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
    error : float or None
        Relative error of the weight in the Frobenius norm; None for weights drawn anew.
    multiplications, dense_multiplications : int
        Of a forward pass, for one row, index or output position (input position where transposed).
    seconds, dense_seconds : float or None
        Measured on the example input, where one was given and reached the layer: a forward pass without
        gradients. For attention, that of the whole layer.
    """

    name: str
    rank: tuple[int, ...]
    stored: int
    dense: int
    error: float | None = None
    multiplications: int = 0
    dense_multiplications: int = 0
    seconds: float | None = None
    dense_seconds: float | None = None


@dataclass(frozen=True)
class FactorizationReport:
    """What :func:`factorize` did; its ``str`` is a table.

    Attributes
    ----------
    layers : tuple of FactorizedLayer
        The layers that are low-rank now.
    left : dict
        Name and reason of each layer that could have been low-rank and stayed dense.
    """

    layers: tuple[FactorizedLayer, ...]
    left: dict[str, str]

    @property
    def compression(self) -> float:
        """``1 - stored / dense`` over the factorized weights."""
        dense = sum(layer.dense for layer in self.layers)
        return 1.0 - sum(layer.stored for layer in self.layers) / dense if dense else 0.0

    def __str__(self) -> str:
        head = ["layer", "rank", "error", "stored", "dense", "mults", "dense mults", "speed"]
        rows = [head, *(_cells(layer) for layer in self.layers)]
        # Columns in which nothing was found out are left away.
        kept = [k for k in range(len(head)) if k < 2 or any(row[k] for row in rows[1:])]
        widths = [max(len(row[k]) for row in rows) for k in kept]
        widths[0] = max([widths[0], *map(len, self.left)])
        lines = [
            "  ".join(
                f"{row[k]:<{width}}" if k < 2 else f"{row[k]:>{width}}"
                for k, width in zip(kept, widths, strict=True)
            ).rstrip()
            for row in rows
        ]
        lines += [f"{name:<{widths[0]}}  dense: {reason}" for name, reason in self.left.items()]
        return "\n".join([*lines, f"compression of the factorized weights: {self.compression:.1%}"])


def _cells(layer: FactorizedLayer) -> list[str]:
    speed = ""
    if layer.seconds is not None and layer.dense_seconds is not None:
        speed = f"x{layer.dense_seconds / layer.seconds:.2f}"
    return [
        layer.name,
        "x".join(map(str, layer.rank)),
        "" if layer.error is None else f"{layer.error:.2g}",
        f"{layer.stored:,}",
        f"{layer.dense:,}",
        f"{layer.multiplications:,}",
        f"{layer.dense_multiplications:,}",
        speed,
    ]
