"""QR, SVD and triangular solves: exact where they can be, deterministic, and hard to break."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.linalg import (
    LINALG_DTYPES,
    left_singular,
    qr,
    rounding_floor,
    solve_right_upper,
    svd,
    triangular_factor,
)
from tenfold.linalg import decompositions as module
from tenfold.manifolds import TuckerManifold

SHAPES = [(5, 3), (3, 5), (4, 4), (1, 3), (3, 1), (1, 1)]
BATCHES = [(), (2,), (2, 3)]


def random(shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def graded(m, n, condition, dtype=torch.float64, seed=0):
    """A matrix with a geometric spectrum in random bases."""
    k = min(m, n)
    u, _ = torch.linalg.qr(random((m, k), torch.float64, seed))
    v, _ = torch.linalg.qr(random((n, k), torch.float64, seed + 1))
    s = float(condition) ** -torch.linspace(0, 1, k, dtype=torch.float64)
    return ((u * s) @ v.mT).to(dtype)


def orthonormality(q):
    return (q.mT @ q - torch.eye(q.shape[-1], dtype=q.dtype)).abs().amax().item() if q.numel() else 0.0


@pytest.mark.parametrize("dtype", LINALG_DTYPES, ids=str)
@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_qr(shape, batch, dtype):
    a = random((*batch, *shape), dtype)
    q, r = qr(a)
    k = min(shape)
    tol = rounding_floor(dtype, max(shape))
    assert q.shape == (*batch, shape[0], k)
    assert r.shape == (*batch, k, shape[1])
    assert (q @ r - a).norm() <= tol * a.norm()
    assert orthonormality(q) <= tol
    assert torch.equal(r, r.triu())
    assert (r.diagonal(dim1=-2, dim2=-1) >= 0).all()


def test_qr_of_orthonormal_columns_is_the_identity():
    q, _ = qr(random((6, 3)))
    again, r = qr(q)
    torch.testing.assert_close(again, q)
    torch.testing.assert_close(r, torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("condition", [1e2, 1e8, 1e15])
def test_qr_stays_orthonormal_at_any_condition(condition):
    a = graded(20, 6, condition)
    q, r = qr(a)
    assert orthonormality(q) <= rounding_floor(torch.float64, 20)
    assert (q @ r - a).norm() <= rounding_floor(torch.float64, 20) * a.norm()


@pytest.mark.parametrize("scale", [0.0, 1e-300, 1e300])
@pytest.mark.parametrize("decompose", [qr, svd], ids=["qr", "svd"])
def test_extreme_scales(decompose, scale):
    a = scale * random((5, 3))
    parts = decompose(a)
    assert all(torch.isfinite(part).all() for part in parts)
    assert orthonormality(parts[0]) <= rounding_floor(torch.float64, 5)


def test_extreme_scales_in_single_precision():
    for scale in (1e-38, 1e-20, 1e20, 1e38):
        a = torch.tensor(scale) * random((5, 3), torch.float32).clamp(-1, 1)
        for part in (*qr(a), *svd(a)):
            assert torch.isfinite(part).all()


@pytest.mark.parametrize("dtype", LINALG_DTYPES, ids=str)
@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_svd(shape, batch, dtype):
    a = random((*batch, *shape), dtype)
    u, s, vh = svd(a)
    k, tol = min(shape), rounding_floor(dtype, max(shape))
    assert (u.shape, s.shape, vh.shape) == ((*batch, shape[0], k), (*batch, k), (*batch, k, shape[1]))
    assert ((u * s.unsqueeze(-2)) @ vh - a).norm() <= tol * a.norm()
    assert orthonormality(u) <= tol
    assert orthonormality(vh.mT) <= tol
    assert (s.diff(dim=-1) <= 0).all()
    np.testing.assert_allclose(s.double(), np.linalg.svd(a.double().numpy(), compute_uv=False), atol=10 * tol)
    largest = u.gather(-2, u.abs().argmax(dim=-2, keepdim=True))
    assert (largest > 0).all()


def test_svd_of_equal_and_zero_singular_values():
    for a in (
        torch.eye(4, dtype=torch.float64),
        torch.zeros(4, 3, dtype=torch.float64),
        graded(4, 2, 1) @ graded(2, 4, 1),
    ):
        u, s, vh = svd(a)
        torch.testing.assert_close((u * s) @ vh, a)
        assert orthonormality(u) <= rounding_floor(torch.float64, 4)


@pytest.mark.parametrize("dtype", LINALG_DTYPES, ids=str)
@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_left_singular_vectors_are_those_of_the_svd(shape, batch, dtype):
    a = random((*batch, *shape), dtype)
    u, s = left_singular(a)
    want_u, want_s, _ = svd(a.double())
    tol = rounding_floor(dtype, max(shape))
    assert u.dtype == s.dtype == dtype
    torch.testing.assert_close(s.double(), want_s, rtol=0, atol=tol * want_s.max().item())
    torch.testing.assert_close(u.double(), want_u, rtol=0, atol=100 * tol)


@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-20, 1.0, 1e20, 1e37])
@pytest.mark.parametrize("condition", [1.0, 1e4, 1e8, 1e12])
def test_left_singular_vectors_in_single_precision_are_as_accurate_as_by_svd(condition, scale):
    eps = torch.finfo(torch.float32).eps
    for seed in range(5):
        a = scale * graded(24, 24, condition, torch.float32, seed)
        u, s = left_singular(a)
        want = torch.linalg.svdvals(a.double())
        assert (s.double() - want).abs().max() <= 2 * eps * want[0] + 1e-44
        assert orthonormality(u) <= 8 * eps
        rest = a.double() - u.double() @ (u.double().mT @ a.double())
        assert rest.norm() <= 8 * eps * a.double().norm()
        assert (s.diff() <= 0).all()


def test_left_singular_vectors_fall_back_to_the_svd(monkeypatch):
    a = random((4, 3), torch.float32)
    want = left_singular(a)

    def fails(*args, **kwargs):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(module.torch.linalg, "eigh", fails)
    for got, expected in zip(left_singular(a), want, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(module.torch.linalg, "svd", fails)
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="NaN or infinity"):
            left_singular(torch.full((3, 3), bad))


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_svd_falls_back_when_the_driver_does_not_converge(monkeypatch, batch):
    a = random((*batch, 4, 3), torch.float32)
    want = svd(a)

    def fails(*args, **kwargs):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(module.torch.linalg, "svd", fails)
    got = svd(a)
    for part, expected in zip(got, want, strict=True):
        assert (part.dtype, part.shape) == (expected.dtype, expected.shape)
        torch.testing.assert_close(part, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="NaN or infinity"):
        svd(torch.full((3, 3), torch.nan))


def test_svd_that_fails_by_both_drivers_is_one_kind_of_error(monkeypatch):
    import scipy.linalg

    def fails(*args, **kwargs):
        raise torch.linalg.LinAlgError("did not converge")

    def fails_too(*args, **kwargs):
        raise scipy.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setattr(module.torch.linalg, "svd", fails)
    monkeypatch.setattr(scipy.linalg, "svd", fails_too)
    with pytest.raises(torch.linalg.LinAlgError, match=r"shape \(4, 3\) does not converge"):
        svd(random((4, 3)))


def test_truncation_survives_a_driver_that_fails(monkeypatch):
    manifold = TuckerManifold((6, 5, 4), 3)
    x = manifold.random(dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    want = manifold.truncate(x, tol=0.5)

    def fails(*args, **kwargs):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(module.torch.linalg, "svd", fails)
    got = manifold.truncate(x, tol=0.5)
    assert got[0] == want[0] != manifold
    torch.testing.assert_close(got[0].to_dense(got[1]), want[0].to_dense(want[1]))


@pytest.mark.parametrize("decompose", [qr, svd, left_singular], ids=["qr", "svd", "left_singular"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_other_types_are_refused(decompose, dtype):
    with pytest.raises(TypeError, match=f"needs a float32 or float64 matrix, got {dtype}"):
        decompose(torch.ones(3, 3, dtype=dtype))


def test_decompositions_are_never_differentiated_through():
    a = random((4, 3)).requires_grad_()
    assert not any(part.requires_grad for part in (*qr(a), *svd(a), *left_singular(a)))


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_triangular_solve(batch):
    upper = random((*batch, 4, 4)).triu() + 4 * torch.eye(4, dtype=torch.float64)
    right = random((*batch, 6, 4), seed=1)
    torch.testing.assert_close(solve_right_upper(right, upper) @ upper, right)


@pytest.mark.parametrize("scale", [1e-300, 1e-20, 1.0, 1e20, 1e300])
def test_triangular_solve_at_any_scale(scale):
    upper = random((3, 3)).triu().abs() + torch.eye(3, dtype=torch.float64)
    right = random((5, 3), seed=1)
    torch.testing.assert_close(
        solve_right_upper(scale * right, scale * upper), solve_right_upper(right, upper)
    )


def test_singular_triangular_systems_give_bounded_results():
    right = random((5, 3), torch.float32)
    for diagonal in ([1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1e-30, 1e-38]):
        upper = torch.diag(torch.tensor(diagonal))
        assert torch.isfinite(solve_right_upper(right, upper)).all()
    exact = solve_right_upper(right, torch.diag(torch.tensor([1.0, 2.0, 0.0])))
    torch.testing.assert_close(exact[:, :2], right[:, :2] / torch.tensor([1.0, 2.0]))


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(
    m=st.integers(1, 8),
    n=st.integers(1, 8),
    power=st.integers(0, 12),
    dtype=st.sampled_from(LINALG_DTYPES),
    seed=st.integers(0, 2**16),
)
def test_backward_errors_are_within_the_rounding_floor(m, n, power, dtype, seed):
    a = graded(m, n, 10.0**power, dtype, seed)
    floor = rounding_floor(dtype, max(m, n))
    q, r = qr(a)
    u, s, vh = svd(a)
    assert (q @ r - a).norm() <= floor * a.norm()
    # LAPACK's divide and conquer loses more in the product than in the values, which ranks are decided on.
    assert ((u * s) @ vh - a).norm() <= 4 * floor * a.norm()
    assert orthonormality(q) <= floor
    assert orthonormality(u) <= 4 * floor
    want = np.linalg.svd(a.double().numpy(), compute_uv=False)
    assert np.abs(s.double().numpy() - want).max() <= floor * want[0]


@pytest.mark.parametrize("size", [2, 4, 8, 16])
@pytest.mark.parametrize("dtype", LINALG_DTYPES, ids=str)
def test_noise_of_a_lower_rank_stays_below_the_rounding_floor(dtype, size):
    """What ``tol=0`` relies on; 500 matrices of half the rank, with a margin of four."""
    rank = size // 2
    a = (random((500, size, rank)) @ random((500, rank, size), seed=1)).to(dtype)
    for values in (svd(a)[1], svd(qr(a)[1])[1]):
        tail = values[:, rank:].norm(dim=-1) / values.norm(dim=-1)
        assert tail.max() <= rounding_floor(dtype, size) / 4


def test_rounding_floor():
    eps = torch.finfo(torch.float64).eps
    assert rounding_floor(torch.float64, 4) == 16 * eps
    assert rounding_floor(torch.float64, 0) == 8 * eps
    assert rounding_floor(torch.float32, 9) == 24 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_triangular_factor_is_that_of_qr(shape):
    a = random((2, *shape))
    torch.testing.assert_close(triangular_factor(a), qr(a)[1])
    with pytest.raises(TypeError, match="float32 or float64"):
        triangular_factor(a.bfloat16())
