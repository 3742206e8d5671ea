"""The properties of a manifold, one module per letter; importing this package enters them all."""

from tenfold.testing.properties import (
    batches,
    gradient,
    metric,
    points,
    projection,
    retraction,
    spectra,
    tangents,
    transport,
    truncation,
)

__all__ = [
    "batches",
    "gradient",
    "metric",
    "points",
    "projection",
    "retraction",
    "spectra",
    "tangents",
    "transport",
    "truncation",
]
