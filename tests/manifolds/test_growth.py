"""Growing the ranks of trees: every new rank is attained, wherever in the tree it is."""

import math

import pytest
import torch

from tenfold.manifolds import (
    FixedRankManifold,
    HierarchicalTuckerManifold,
    TensorTrainManifold,
    TuckerManifold,
)
from tenfold.manifolds.growth import grow

MANIFOLDS = [
    TensorTrainManifold((4, 5, 6, 7), 2),
    TensorTrainManifold((3, 3, 3, 3, 3), (2, 1, 3, 2)),
    TensorTrainManifold((3, 2, 2, 3), 2, rows=2),
    HierarchicalTuckerManifold((4, 5, 6, 7), 2),
    HierarchicalTuckerManifold((3, 4, 3, 3, 2), 2),
    TuckerManifold((4, 5, 6), 2),
    FixedRankManifold((6, 5), 2),
]
each_manifold = pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def singly(manifold):
    """The manifolds with one rank more by one."""
    ranks = manifold._ranks
    for k, rank in enumerate(ranks):
        try:
            yield manifold.with_rank((*ranks[:k], rank + 1, *ranks[k + 1 :]))
        except ValueError:
            continue


@each_manifold
@pytest.mark.parametrize("batch", [(), (3,)], ids=str)
def test_every_single_rank_can_grow(manifold, batch):
    x = manifold.random(*batch, manifold.size, dtype=torch.float64, generator=generator(1))
    old, axes = manifold.to_dense(x), tuple(range(-len(manifold.shape), 0))
    candidates = list(singly(manifold))
    assert len(candidates) >= len(manifold._ranks) / 2
    for scale in (1e-2, 1e-6):
        for larger in candidates:
            new, y = grow(manifold, x, larger.rank, scale=scale, generator=generator(2))
            assert new == larger
            new.assert_check_point_on_manifold(y, atol=1e-12, rtol=0)
            change = torch.linalg.vector_norm(new.to_dense(y) - old, dim=axes)
            torch.testing.assert_close(
                change, scale * torch.linalg.vector_norm(old, dim=axes), rtol=1e-7, atol=0
            )
            for k in range(math.prod(batch)):
                assert new.truncate(y.reshape(-1, new.size)[k])[0] == new


@each_manifold
def test_several_ranks_grow_by_about_the_scale(manifold):
    x = manifold.random(dtype=torch.float64, generator=generator(1))
    old = manifold.to_dense(x)
    highest = manifold.with_rank(manifold.full_rank)._ranks
    halfway = [(a + b + 1) // 2 for a, b in zip(manifold._ranks, highest, strict=True)]
    middle = manifold.tree.clip(manifold.shape, halfway)
    for rank in (middle, highest):
        new, y = grow(manifold, x, rank if len(rank) > 1 else rank[0], scale=1e-3, generator=generator(2))
        new.assert_check_point_on_manifold(y, atol=1e-12, rtol=0)
        change = (new.to_dense(y) - old).norm() / old.norm()
        assert change == pytest.approx(1e-3, rel=1e-2)
        assert new.truncate(y)[0] == new


@each_manifold
def test_the_zero_tensor_grows_to_the_scale_itself(manifold):
    x = manifold.random(2, manifold.size, dtype=torch.float64, generator=generator(1))
    factors = list(manifold.unpack_tensor(x))
    factors[manifold.tree.root][0] = 0.0
    x = manifold.pack_point(*factors)
    for larger in singly(manifold):
        new, y = grow(manifold, x, larger.rank, scale=1e-2, generator=generator(2))
        new.assert_check_point_on_manifold(y, atol=1e-12, rtol=0)
        change = torch.linalg.vector_norm((new.to_dense(y) - manifold.to_dense(x)).flatten(1), dim=-1)
        wanted = 1e-2 * torch.stack([torch.tensor(1.0).double(), manifold.to_dense(x)[1].norm()])
        torch.testing.assert_close(change, wanted, rtol=1e-3, atol=0)
        assert new.truncate(y[0])[0] == new
