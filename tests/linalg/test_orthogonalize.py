"""Approximate polar factors against singular value decompositions in float64."""

from __future__ import annotations

import pytest
import torch

from tenfold.linalg import orthogonalize

# Square, just below and above the ratio from which the Gram matrix is used, and batches.
SHAPES = [(7, 7), (30, 12), (5, 30, 12), (36, 12), (12, 36), (2, 3, 60, 8), (40, 1)]


def oracle(matrix: torch.Tensor, steps: int) -> torch.Tensor:
    """The polynomial applied to the singular values themselves."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm(dim=-1, keepdim=True)
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ torch.diag_embed(s) @ vh


def random(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_a_polynomial_of_the_singular_values(shape, steps):
    matrix = random(*shape)
    torch.testing.assert_close(orthogonalize(matrix, steps), oracle(matrix, steps))


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_come_near_to_one(shape):
    matrix = random(*shape)
    s = torch.linalg.svdvals(matrix)
    values = torch.linalg.svdvals(orthogonalize(matrix))
    large = (s > 0.002 * s.norm(dim=-1, keepdim=True)).sum(-1).amin()
    assert ((values > 0.68) & (values < 1.21)).sum(-1).amin() >= large


@pytest.mark.parametrize("steps", [5, 10])
@pytest.mark.parametrize("m", [20, 80, 400])
def test_small_singular_values_in_single_precision(m, steps):
    """Ten steps bring singular values near to one that a Gram matrix of single precision cannot see."""
    u, v = torch.linalg.qr(random(m, 20))[0], torch.linalg.qr(random(20, 20))[0]
    matrix = (u * torch.logspace(0, -6, 20, dtype=torch.float64)) @ v.mT
    result, expected = orthogonalize(matrix.float(), steps).double(), oracle(matrix, steps)
    torch.testing.assert_close(u.mT @ result @ v, u.mT @ expected @ v, rtol=0, atol=2e-3)


def test_half_precision_is_as_accurate_where_a_matrix_is_tall():
    matrix = random(90, 30)
    result = orthogonalize(matrix.bfloat16()).double()
    assert (result - oracle(matrix, 5)).norm() < 0.1 * oracle(matrix, 5).norm()


@pytest.mark.parametrize("shape", [(6, 4), (60, 4)])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_it_has_no_scale_and_keeps_zero(shape, scale):
    matrix = random(*shape, dtype=torch.float32)
    torch.testing.assert_close(orthogonalize(matrix * scale), orthogonalize(matrix), rtol=1e-4, atol=1e-4)
    assert torch.equal(orthogonalize(torch.zeros(shape)), torch.zeros(shape))


def test_it_runs_on_the_meta_device():
    assert orthogonalize(torch.empty(2, 60, 4, device="meta")).shape == (2, 60, 4)
