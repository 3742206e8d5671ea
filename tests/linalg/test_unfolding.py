"""Unfoldings and mode products against loops."""

import itertools

import numpy as np
import pytest
import torch

from tenfold.linalg import fold, mode_product, unfold

SHAPES = [(4,), (3, 4), (2, 3, 4), (2, 1, 3, 2), (2, 3, 1, 2, 2)]
BATCHES = [(), (2,), (2, 3)]
CASES = [(shape, axis) for shape in SHAPES for axis in range(len(shape))]


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize(("shape", "axis"), CASES, ids=str)
def test_unfold_and_fold_are_inverse(shape, axis, batch):
    tensor = torch.randn(*batch, *shape)
    matrix = unfold(tensor, axis, len(shape))
    assert matrix.shape == (*batch, shape[axis], tensor[(0,) * len(batch)].numel() // shape[axis])
    assert torch.equal(fold(matrix, axis, shape), tensor)


@pytest.mark.parametrize(("shape", "axis"), CASES, ids=str)
def test_columns_of_an_unfolding_are_fibres_in_row_major_order(shape, axis):
    tensor = torch.randn(*shape)
    matrix = unfold(tensor, axis, len(shape))
    others = [range(n) for k, n in enumerate(shape) if k != axis]
    for column, index in enumerate(itertools.product(*others)):
        fibre = tensor[(*index[:axis], slice(None), *index[axis:])]
        assert torch.equal(matrix[:, column], fibre)


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize(("shape", "axis"), CASES, ids=str)
def test_mode_product(shape, axis, batch):
    tensor = torch.randn(*batch, *shape, dtype=torch.float64)
    matrix = torch.randn(5, shape[axis], dtype=torch.float64)
    got = mode_product(tensor, matrix, axis, len(shape)).numpy()
    want = np.moveaxis(
        np.tensordot(matrix.numpy(), tensor.numpy(), axes=(1, len(batch) + axis)), 0, len(batch) + axis
    )
    np.testing.assert_allclose(got, want, atol=1e-13)


@pytest.mark.parametrize("axis", range(3))
def test_batches_of_mode_products_broadcast(axis):
    tensor = torch.randn(4, 1, 2, 3, 4, dtype=torch.float64)
    matrix = torch.randn(3, 5, (2, 3, 4)[axis], dtype=torch.float64)
    got = mode_product(tensor, matrix, axis, 3)
    assert got.shape[:2] == (4, 3)
    for i, j in itertools.product(range(4), range(3)):
        torch.testing.assert_close(got[i, j], mode_product(tensor[i, 0], matrix[j], axis, 3))


def test_no_copy_for_the_first_axis():
    tensor = torch.randn(4, 3, 2)
    assert unfold(tensor, 0, 3).data_ptr() == tensor.data_ptr()


def test_gradients_flow():
    tensor = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t, m: mode_product(t, m, 1, 3), (tensor, matrix))
    assert torch.autograd.gradcheck(lambda t: fold(unfold(t, 2, 3), 2, (2, 3, 2)), (tensor,))
