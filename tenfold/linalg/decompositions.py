"""QR and SVD that are deterministic in their signs, batched, and hard to break.

They are computed in float32 or float64 only (there are no kernels for half precision) and are
never differentiated through: a gauge choice has no derivative at equal singular values.
"""

from __future__ import annotations

import torch

from tenfold.linalg.non_finite import NonFiniteError

__all__ = [
    "LINALG_DTYPES",
    "cholesky",
    "invert_upper",
    "left_singular",
    "qr",
    "solve_right_upper",
    "svd",
    "triangular_factor",
]

LINALG_DTYPES = (torch.float32, torch.float64)
"""Types in which decompositions exist."""


def _check(matrix: torch.Tensor, name: str) -> None:
    if matrix.dtype not in LINALG_DTYPES:
        raise TypeError(f"{name} needs a float32 or float64 matrix, got {matrix.dtype}")


def _signs(values: torch.Tensor) -> torch.Tensor:
    """+1 where ``values >= 0`` and -1 elsewhere (``sign`` would give 0 at 0)."""
    return torch.where(values < 0, -torch.ones_like(values), torch.ones_like(values))


def qr(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Reduced QR decomposition with a non-negative diagonal of R.

    With that sign the decomposition of a matrix with orthonormal columns is the matrix itself
    and the identity, so gauges do not jump.

    Parameters
    ----------
    matrix : torch.Tensor
        Shape ``(*batch, m, n)``, float32 or float64.

    Returns
    -------
    q : torch.Tensor
        Orthonormal columns, shape ``(*batch, m, k)`` with ``k = min(m, n)``.
    r : torch.Tensor
        Upper triangular, shape ``(*batch, k, n)``.

    Raises
    ------
    TypeError
        If the matrix is neither float32 nor float64.

    Notes
    -----
    Householder reflections: backward stable at any condition number and any magnitude.
    Complexity: ``O(m n k)``.
    """
    _check(matrix, "qr")
    q, r = torch.linalg.qr(matrix.detach())
    sign = _signs(r.diagonal(dim1=-2, dim2=-1))
    return q.mul_(sign.unsqueeze(-2)), r.mul_(sign.unsqueeze(-1))


def triangular_factor(matrix: torch.Tensor) -> torch.Tensor:
    """The R of :func:`qr`, without Q and for half of the price.

    Parameters
    ----------
    matrix : torch.Tensor
        Shape ``(*batch, m, n)``, float32 or float64.

    Returns
    -------
    torch.Tensor
        Upper triangular with a non-negative diagonal, shape ``(*batch, min(m, n), n)``.

    Raises
    ------
    TypeError
        If the matrix is neither float32 nor float64.
    """
    _check(matrix, "qr")
    r = torch.linalg.qr(matrix.detach(), mode="r").R
    return r * _signs(r.diagonal(dim1=-2, dim2=-1)).unsqueeze(-1)


def cholesky(matrix: torch.Tensor) -> torch.Tensor:
    """Lower Cholesky factor, without the host synchronisation of an error check.

    Parameters
    ----------
    matrix : torch.Tensor
        Symmetric positive definite, shape ``(*batch, n, n)``, float32 or float64.

    Returns
    -------
    torch.Tensor
        Lower triangular, same shape. Where the matrix is not positive definite the result is not
        finite, which the caller's check finds.
    """
    _check(matrix, "cholesky")
    factor, failed = torch.linalg.cholesky_ex(matrix.detach())
    factor.diagonal(dim1=-2, dim2=-1).masked_fill_((failed != 0).unsqueeze(-1), torch.nan)
    return factor


def svd(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Reduced singular value decomposition with deterministic signs.

    In every left singular vector the entry of largest magnitude is positive. If the driver
    does not converge, the decomposition is repeated in float64 by LAPACK's ``gesvd`` (SciPy, on
    the CPU), which converges on anything finite.

    Parameters
    ----------
    matrix : torch.Tensor
        Shape ``(*batch, m, n)``, float32 or float64.

    Returns
    -------
    u, s, vh : torch.Tensor
        Shapes ``(*batch, m, k)``, ``(*batch, k)`` descending, ``(*batch, k, n)``; ``k = min(m, n)``.

    Raises
    ------
    TypeError
        If the matrix is neither float32 nor float64.
    NonFiniteError
        If it holds a NaN or an infinity and the driver did not survive it (a ValueError, too).
    torch.linalg.LinAlgError
        If neither driver converges.
    """
    _check(matrix, "svd")
    matrix = matrix.detach()
    scale = matrix.abs().amax(dim=(-2, -1), keepdim=True) if matrix.numel() else matrix.new_ones(1, 1)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    try:
        u, s, vh = torch.linalg.svd(matrix / scale, full_matrices=False)
    except torch.linalg.LinAlgError:
        u, s, vh = _svd_gesvd(matrix / scale)
    s = s * scale.squeeze(-1)
    if u.shape[-1]:
        sign = _pivot_signs(u)
        u, vh = u * sign, vh * sign.mT
    return u, s, vh


def left_singular(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The left singular vectors and the singular values of :func:`svd`, at three quarters of the price.

    Parameters
    ----------
    matrix : torch.Tensor
        Shape ``(*batch, m, n)``, float32 or float64.

    Returns
    -------
    u, s : torch.Tensor
        Shapes ``(*batch, m, k)`` and ``(*batch, k)`` descending; ``k = min(m, n)``.

    Raises
    ------
    TypeError, NonFiniteError, torch.linalg.LinAlgError
        As :func:`svd`.

    Notes
    -----
    In float32 they come from the eigenvalues of ``A A^T`` in float64. Products of two numbers in float32 are
    exact there, and the root of its rounding, ``1e-8`` times the largest singular value, is below that of
    float32: the result is at least as accurate as an SVD. In float64 it would not be, and an SVD is made.
    Complexity: ``O(m^2 (m + n))``.
    """
    _check(matrix, "svd")
    if matrix.dtype == torch.float64:
        return svd(matrix)[:2]
    wide = matrix.detach().double()
    try:
        squares, u = torch.linalg.eigh(wide @ wide.mT)
    except torch.linalg.LinAlgError:
        return svd(matrix)[:2]
    k = min(matrix.shape[-2:])
    u, s = u.to(matrix.dtype).flip(-1)[..., :k], squares.clamp(min=0.0).sqrt().to(matrix.dtype).flip(-1)
    return u * _pivot_signs(u), s[..., :k]


def _pivot_signs(u: torch.Tensor) -> torch.Tensor:
    """Signs that make the entry of largest magnitude of every column positive."""
    return _signs(u.amax(dim=-2, keepdim=True) + u.amin(dim=-2, keepdim=True))


def _svd_gesvd(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from scipy.linalg import LinAlgError
    from scipy.linalg import svd as scipy_svd

    if not torch.isfinite(matrix).all():
        raise NonFiniteError(f"svd of a matrix of shape {tuple(matrix.shape)} that holds NaN or infinity")
    flat = matrix.reshape(-1, *matrix.shape[-2:]).double().cpu().numpy()
    try:
        parts = [scipy_svd(item, full_matrices=False, lapack_driver="gesvd") for item in flat]
    except LinAlgError as error:  # NumPy's, which nobody here expects
        raise torch.linalg.LinAlgError(
            f"svd of a matrix of shape {tuple(matrix.shape)} does not converge, by gesvd in float64 neither"
        ) from error
    return tuple(  # type: ignore[return-value]
        torch.stack([torch.from_numpy(part[k]) for part in parts])
        .to(matrix)
        .reshape(*matrix.shape[:-2], *parts[0][k].shape)
        for k in range(3)
    )


def invert_upper(upper: torch.Tensor) -> torch.Tensor:
    """Inverse of a well-conditioned upper triangular matrix.

    Parameters
    ----------
    upper : torch.Tensor
        Upper triangular, shape ``(*batch, n, n)``.

    Returns
    -------
    torch.Tensor
        Upper triangular, same shape.
    """
    eye = torch.eye(upper.shape[-1], dtype=upper.dtype, device=upper.device)
    return torch.linalg.solve_triangular(upper, eye.expand_as(upper), upper=True, left=False)


def solve_right_upper(right: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """Solve ``X @ upper = right`` for an upper triangular matrix that may be singular.

    Diagonal entries below ``eps`` times the largest entry are raised to that floor: a
    zero singular value then contributes a bounded term instead of an infinity, and a
    well-conditioned system is solved as it stands.

    Parameters
    ----------
    right : torch.Tensor
        Shape ``(*batch, m, n)``.
    upper : torch.Tensor
        Upper triangular with a non-negative diagonal, shape ``(*batch, n, n)``.

    Returns
    -------
    torch.Tensor
        Shape ``(*batch, m, n)``.
    """
    _check(upper, "solve_right_upper")
    largest = upper.abs().amax(dim=(-2, -1), keepdim=True)
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    scaled = upper / scale
    diagonal = scaled.diagonal(dim1=-2, dim2=-1)
    floored = diagonal.clamp(min=torch.finfo(upper.dtype).eps)
    scaled = scaled + torch.diag_embed(floored - diagonal)
    return torch.linalg.solve_triangular(scaled, right / scale, upper=True, left=False)
