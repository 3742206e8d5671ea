"""The accuracies that the paper of TDLRT published, for comparison."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class PublishedPoint:
    """One point of the paper's Figure 1.

    Parameters
    ----------
    model, data : str
        Network and data set, named as here.
    method : str
        ``"full"``, ``"tdlrt"``, ``"tucker"``, ``"matrix"`` or ``"cp"``.
    compression, accuracy : float
        In percent; compression of the convolutions.
    """

    model: str
    data: str
    method: str
    compression: float
    accuracy: float


def published_points(model: str, data: str) -> list[PublishedPoint]:
    """The published points for a network and a data set, none if there are none.

    References
    ----------
    Zangrando et al., "Geometry-aware training of factorized layers in tensor Tucker format", NeurIPS 2024
    (arXiv 2305.19059), Figure 1, read off the figure.
    """
    text = resources.files("tenfold.experiments").joinpath("published.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return [
        PublishedPoint(
            model, data, row["method"], float(row["compression_percent"]), float(row["accuracy_percent"])
        )
        for row in rows
        if row["model_data"] == f"{model}_{data}"
    ]
