"""Several ways to an orthonormal basis of the columns of a matrix."""

from __future__ import annotations

from enum import Enum

import torch

from tenfold.linalg.decompositions import cholesky, invert_upper, qr, svd

__all__ = ["Orthonormalization", "orthonormalize"]

_NEWTON_SCHULZ_STEPS = 40
"""Enough for condition numbers to 1e5: while singular values are small a step raises them by one half."""


class Orthonormalization(str, Enum):
    """How a basis is made orthonormal. All span the same space; cost and reach differ."""

    QR = "qr"
    """Householder reflections: any matrix, of any condition."""
    CHOLESKY = "cholesky"
    """One Cholesky factor of the Gram matrix: products, and the cheapest. The defect from orthogonality
    is ``eps`` times the squared condition number."""
    CHOLESKY_QR3 = "cholesky-qr3"
    """Three Cholesky factors, the first of a shifted Gram matrix, which always exists: products, and
    orthogonal to ``eps`` at condition numbers up to about ``1 / (100 eps)``."""
    POLAR = "polar"
    """The closest matrix with orthonormal columns, by an SVD."""
    NEWTON_SCHULZ = "newton-schulz"
    """The same by 40 steps ``X <- X (3 I - X^T X) / 2`` from ``X / |X|``: nothing but products, for
    condition numbers up to 1e5."""


def orthonormalize(
    matrix: torch.Tensor, method: Orthonormalization | str = Orthonormalization.QR
) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal basis of the columns of a matrix, and the factor that leads back.

    Parameters
    ----------
    matrix : torch.Tensor
        Shape ``(*batch, m, n)``, float32 or float64. Where ``m < n`` the method is QR.
    method : Orthonormalization or str
        The method.

    Returns
    -------
    basis : torch.Tensor
        Shape ``(*batch, m, k)`` with ``k = min(m, n)``. What is not finite tells that the matrix was out
        of the method's reach.
    factor : torch.Tensor
        ``matrix = basis @ factor``, shape ``(*batch, k, n)``.

    Raises
    ------
    TypeError
        If the matrix is neither float32 nor float64.
    ValueError
        If the method is not known.

    Notes
    -----
    Complexity: ``O(m n k)``; the methods made of products take 2 (Cholesky), 6 (Cholesky QR3) and 80
    (Newton-Schulz) products of ``m x n`` and ``n x n``. Runs without a synchronisation, but for SVDs that
    fail.

    References
    ----------
    Fukaya et al., "Shifted Cholesky QR for computing the QR factorization of ill-conditioned matrices",
    SIAM J. Sci. Comput., 2020. Higham, "Functions of Matrices", 2008, chapter 8.
    """
    method = Orthonormalization(method)
    if method is Orthonormalization.QR or matrix.shape[-2] < matrix.shape[-1]:
        return qr(matrix)
    matrix = matrix.detach()
    if method is Orthonormalization.CHOLESKY:
        return _cholesky_qr(matrix)
    if method is Orthonormalization.CHOLESKY_QR3:
        return _shifted_cholesky_qr3(matrix)
    if method is Orthonormalization.POLAR:
        u, s, vh = svd(matrix)
        return u @ vh, vh.mT @ (s.unsqueeze(-1) * vh)
    basis = _newton_schulz(matrix)
    return basis, basis.mT @ matrix


def _cholesky_qr(matrix: torch.Tensor, shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    gram = matrix.mT @ matrix
    if shift:
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        diagonal += shift * diagonal.sum(-1, keepdim=True) + torch.finfo(gram.dtype).tiny
    upper = cholesky(gram).mT
    return matrix @ invert_upper(upper), upper


def _shifted_cholesky_qr3(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    m, n = matrix.shape[-2:]
    # In units of the largest entry, which the squares of the Gram matrix cannot leave.
    scale = matrix.abs().amax((-2, -1), keepdim=True)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    basis, factor = matrix / scale, scale * torch.eye(n, dtype=matrix.dtype, device=matrix.device)
    for shift in ((m + n) * torch.finfo(matrix.dtype).eps, 0.0, 0.0):
        basis, upper = _cholesky_qr(basis, shift)
        factor = upper @ factor
    return basis, factor


def _newton_schulz(matrix: torch.Tensor) -> torch.Tensor:
    scale = matrix.abs().amax((-2, -1), keepdim=True)
    x = matrix / torch.where(scale > 0, scale, torch.ones_like(scale))
    norm = torch.linalg.matrix_norm(x, keepdim=True)
    x = x / torch.where(norm > 0, norm, torch.ones_like(norm))
    for _ in range(_NEWTON_SCHULZ_STEPS):
        x = 1.5 * x - 0.5 * x @ (x.mT @ x)
    return x
