"""The properties of a manifold, one module per letter; importing this package enters them all."""

from tenfold.testing.properties import (
    gradient,
    metric,
    points,
    projection,
    retraction,
    tangents,
    transport,
    truncation,
)

__all__ = ["gradient", "metric", "points", "projection", "retraction", "tangents", "transport", "truncation"]
