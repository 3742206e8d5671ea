"""The norm that neither overflows nor underflows."""

import math

import pytest
import torch

from tenfold.linalg import vector_norm


@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-30, 1e-20, 1.0, 1e20, 1e37])
def test_every_length_that_the_type_holds(size):
    rows = torch.tensor([[3.0, 0.0, 4.0], [0.0, -5.0, 0.0]]) * size
    want = torch.linalg.vector_norm(rows.double(), dim=-1)
    torch.testing.assert_close(vector_norm(rows).double(), want, rtol=1e-6, atol=1e-45)
    assert (vector_norm(rows) > 0).all()


@pytest.mark.parametrize("size", [1e-300, 1.0, 1e300])
def test_double_precision(size):
    rows = torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(vector_norm(size * rows) / size, rows.norm(dim=-1), rtol=1e-14, atol=0.0)


def test_members_of_a_batch_are_scaled_by_themselves():
    rows = torch.tensor([1e-30, 1.0, 1e30]).unsqueeze(-1) * torch.tensor([3.0, 4.0])
    torch.testing.assert_close(vector_norm(rows), torch.tensor([5e-30, 5.0, 5e30]))


def test_zero_infinity_and_nan_stay():
    rows = torch.tensor([[0.0, 0.0], [math.inf, 1.0], [-math.inf, 1e30], [math.nan, 1.0]])
    assert vector_norm(rows)[0] == 0.0
    assert vector_norm(rows)[1:3].tolist() == [math.inf, math.inf]
    assert vector_norm(rows)[3].isnan()


def test_dimensions():
    x = torch.randn(2, 3, 4, 5)
    for dim in (-1, 1, (1, 2), (-3, -1)):
        for keepdim in (False, True):
            want = torch.linalg.vector_norm(x, dim=dim, keepdim=keepdim)
            torch.testing.assert_close(vector_norm(x, dim, keepdim=keepdim), want)
    assert vector_norm(torch.zeros(0, 3)).shape == (0,)


def test_it_is_differentiable():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(vector_norm, (x,))


def test_it_needs_no_numbers():
    x = torch.empty(2, 3, device="meta")
    assert vector_norm(x, keepdim=True).shape == (2, 1)
    assert vector_norm(x).device.type == "meta"
