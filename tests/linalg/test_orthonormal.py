"""Bases of columns: what each method stands."""

import pytest
import torch

from tenfold.linalg import Orthonormalization, orthonormalize

REACH = {
    ("qr", torch.float32): 1e12,
    ("cholesky-qr3", torch.float32): 1e5,
    ("polar", torch.float32): 1e12,
    ("newton-schulz", torch.float32): 1e5,
    ("qr", torch.float64): 1e15,
    ("cholesky", torch.float64): 1e2,
    ("cholesky-qr3", torch.float64): 1e13,
    ("polar", torch.float64): 1e15,
    ("newton-schulz", torch.float64): 1e5,
}


def matrix(condition, m=60, n=20, dtype=torch.float64, batch=()):
    draw = torch.Generator().manual_seed(0)
    normal = (torch.randn(*batch, size, n, dtype=torch.float64, generator=draw) for size in (m, n))
    left, right = (torch.linalg.qr(x)[0] for x in normal)
    values = condition ** -torch.linspace(0, 1, n, dtype=torch.float64)
    return (left * values @ right.mT).to(dtype)


def defect(basis):
    return (basis.mT @ basis - torch.eye(basis.shape[-1], dtype=basis.dtype)).abs().max().item()


@pytest.mark.parametrize(("name", "dtype"), REACH, ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e15])
def test_orthonormal_within_reach(name, dtype, scale):
    if (name, scale) == ("cholesky", 1e-30):
        scale = 1e-10  # its Gram matrix is not scaled
    eps = torch.finfo(dtype).eps
    for condition in (1.0, REACH[name, dtype] ** 0.5, REACH[name, dtype]):
        x = scale * matrix(condition, dtype=dtype)
        basis, factor = orthonormalize(x, name)
        lost = condition**2 if name == "cholesky" else 1.0
        assert defect(basis) < 200 * eps * lost
        assert (basis @ factor - x).double().norm() < 200 * eps * x.double().norm()


@pytest.mark.parametrize("name", list(Orthonormalization))
def test_batches_and_wide_matrices(name):
    x = matrix(10.0, batch=(2, 3))
    basis, _ = orthonormalize(x, name)
    torch.testing.assert_close(basis[1, 2], orthonormalize(x[1, 2], name)[0])
    wide, factor = orthonormalize(x.mT, name)
    assert wide.shape == (2, 3, 20, 20)
    torch.testing.assert_close(wide @ factor, x.mT)


@pytest.mark.parametrize("name", ["qr", "cholesky", "cholesky-qr3", "newton-schulz"])
def test_on_meta(name):
    basis, factor = orthonormalize(torch.empty(5, 9, 4, device="meta"), name)
    assert basis.shape == (5, 9, 4)
    assert factor.shape == (5, 4, 4)


def test_out_of_reach_is_not_finite():
    basis, _ = orthonormalize(matrix(1e6, dtype=torch.float32), "cholesky")
    assert not basis.isfinite().any()


def test_polar_is_the_closest():
    x = matrix(5.0)
    nearest = (orthonormalize(x, "polar")[0] - x).norm()
    for name in ("qr", "cholesky"):
        assert (orthonormalize(x, name)[0] - x).norm() > nearest + 1e-3
    torch.testing.assert_close(orthonormalize(x, "newton-schulz")[0], orthonormalize(x, "polar")[0])


def test_unknown():
    with pytest.raises(ValueError, match="is not a valid Orthonormalization"):
        orthonormalize(torch.eye(2), "gram-schmidt")
