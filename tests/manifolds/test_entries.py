"""Entries at given positions, and points of higher rank, against the dense tensor."""

import pytest
import torch

from tenfold.manifolds import TuckerManifold
from tenfold.manifolds.entries import Entries
from tenfold.manifolds.growth import grow
from tests.optim.problems import MANIFOLDS, generator


def positions(shape, count):
    return torch.stack([torch.randint(n, (count,), generator=generator(k)) for k, n in enumerate(shape)], 1)


@pytest.mark.parametrize("count", [0, 1, 7, 400], ids=lambda count: f"{count}-entries")
@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_entries_and_gradient_are_those_of_the_dense_tensor(manifold, count):
    x = manifold.random(dtype=torch.float64, generator=generator(1)).requires_grad_()
    index = positions(manifold.shape, count)
    entries = Entries(manifold, index)
    assert len(entries) == count
    seen, expected = entries(manifold, x), manifold.to_dense(x)[tuple(index.T)]
    torch.testing.assert_close(seen, expected)
    weight = torch.randn(count, dtype=torch.float64, generator=generator(2))
    ours, theirs = (torch.autograd.grad(v @ weight, x)[0] for v in (seen, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_entries_under_autocast(manifold):
    x = manifold.random(generator=generator(1)).requires_grad_()
    index = positions(manifold.shape, 400)
    with torch.autocast("cpu", torch.bfloat16):
        seen = Entries(manifold, index)(manifold, x)
    expected = manifold.to_dense(x)[tuple(index.T)]
    torch.testing.assert_close(seen.float(), expected, rtol=0.0, atol=0.05 * expected.abs().max().item())
    assert torch.isfinite(torch.autograd.grad(seen.float().square().sum(), x)[0]).all()


def test_the_same_positions_serve_every_rank_and_lifted_gradients():
    manifold = TuckerManifold((6, 5, 4), 2)
    index = positions(manifold.shape, 50)
    entries = Entries(manifold, index)
    for other in (manifold.with_rank(3), manifold.lifted()):
        x = other.random(dtype=torch.float64, generator=generator(1)).requires_grad_()
        seen = entries(other, x)
        torch.testing.assert_close(seen, other.to_dense(x)[tuple(index.T)])
        (grad,) = torch.autograd.grad(seen.square().sum(), x)
        error = torch.zeros(other.shape, dtype=torch.float64).index_put(
            tuple(index.T), 2 * seen.detach(), accumulate=True
        )
        torch.testing.assert_close(other.egrad2rgrad(x.detach(), grad), other.project_dense(x, error))


def test_rows_are_made_for_distinct_parts_only():
    """A tensor of 10^18 entries: nothing of its size can be made."""
    manifold = TuckerManifold((10**6, 10**6, 10**6), 2)
    x = manifold.random(dtype=torch.float64, generator=generator(1))
    index = torch.tensor([[0, 5, 999_999], [999_999, 5, 0], [0, 5, 999_999]])
    core, *factors = manifold.unpack_tensor(x)
    rows = [factor[index[:, k]] for k, factor in enumerate(factors)]
    torch.testing.assert_close(
        Entries(manifold, index)(manifold, x), torch.einsum("abc,ma,mb,mc->m", core, *rows)
    )


def test_entries_refuse_what_does_not_fit():
    manifold = TuckerManifold((6, 5, 4), 2)
    with pytest.raises(ValueError, match=r"\(m, 3\)"):
        Entries(manifold, torch.zeros(4, 2, dtype=torch.long))
    with pytest.raises(TypeError, match="integers"):
        Entries(manifold, torch.zeros(4, 3))
    for outside in (-1, 4):
        with pytest.raises(ValueError, match="outside the shape"):
            Entries(manifold, torch.tensor([[0, 0, outside]]))
    entries = Entries(manifold, torch.zeros(1, 3, dtype=torch.long))
    other = TuckerManifold((6, 5, 3), 2)
    with pytest.raises(ValueError, match="another format or shape"):
        entries(other, other.origin())
    with pytest.raises(ValueError, match="one point"):
        entries(manifold, manifold.origin(2, manifold.size))


@pytest.mark.parametrize("batch", [(), (2,)], ids=["point", "batch"])
@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_growing_changes_the_tensor_by_the_given_amount(manifold, batch):
    x = manifold.random(*batch, manifold.size, dtype=torch.float64, generator=generator(1))
    larger = manifold.with_rank(manifold.full_rank)
    new, y = grow(manifold, x, larger.rank, scale=1e-3, generator=generator(2))
    assert new == larger
    new.assert_check_point_on_manifold(y, atol=1e-12, rtol=0)
    old = manifold.to_dense(x)
    axes = tuple(range(-len(manifold.shape), 0))
    change = torch.linalg.vector_norm(new.to_dense(y) - old, dim=axes)
    torch.testing.assert_close(change, 1e-3 * torch.linalg.vector_norm(old, dim=axes))
    assert all((values[..., -1] > 0).all() for values in new.singular_values(y))


def test_growing_to_the_same_rank_changes_nothing():
    manifold = MANIFOLDS[0]
    x = manifold.random(dtype=torch.float64, generator=generator(1))
    new, y = grow(manifold, x, manifold.rank)
    assert new == manifold
    torch.testing.assert_close(y, x)
