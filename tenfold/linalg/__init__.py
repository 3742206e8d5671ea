"""Batched linear algebra and unfoldings: what every manifold is built from."""

from tenfold.linalg.decompositions import (
    LINALG_DTYPES,
    cholesky,
    invert_upper,
    left_singular,
    qr,
    solve_right_upper,
    svd,
    triangular_factor,
)
from tenfold.linalg.non_finite import NonFiniteError
from tenfold.linalg.norms import vector_norm
from tenfold.linalg.orthogonalize import orthogonalize
from tenfold.linalg.orthonormal import Orthonormalization, orthonormalize
from tenfold.linalg.tolerances import rounding_floor
from tenfold.linalg.unfolding import fold, mode_product, unfold

__all__ = [
    "LINALG_DTYPES",
    "NonFiniteError",
    "Orthonormalization",
    "cholesky",
    "fold",
    "invert_upper",
    "left_singular",
    "mode_product",
    "orthogonalize",
    "orthonormalize",
    "qr",
    "rounding_floor",
    "solve_right_upper",
    "svd",
    "triangular_factor",
    "unfold",
    "vector_norm",
]
