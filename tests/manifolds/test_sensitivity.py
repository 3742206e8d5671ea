"""Breaking a formula turns the comparison with the oracles red: every term of the projection counts."""

import numpy as np
import pytest
import torch

from tenfold.manifolds import HierarchicalTuckerManifold, TensorTrainManifold, TuckerManifold

from . import oracles
from .test_dense_oracles import dense_of, packed


@pytest.mark.parametrize(
    "manifold",
    [
        TuckerManifold((4, 3, 5), (2, 2, 3)),
        TensorTrainManifold((4, 3, 5), (3, 2)),
        HierarchicalTuckerManifold((3, 4, 3), 2),
    ],
    ids=lambda m: m.name,
)
def test_every_block_of_a_tangent_vector_counts(manifold):
    x = packed(manifold)
    basis = oracles.tangent_basis(dense_of(manifold), x.numpy(), manifold.dim)
    z = torch.randn(*manifold.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u = manifold.project_dense(x, z)
    want = basis @ (basis.T @ z.numpy().ravel())
    for k, block in enumerate(manifold.unpack_tensor(u)):
        if not block.abs().max() > 1e-12:
            continue  # a square factor has no tangent directions
        blocks = list(manifold.unpack_tensor(u))
        blocks[k] = 0.999 * block
        broken = manifold.tangent_to_dense(x, manifold.pack_point(*blocks)).numpy().ravel()
        assert np.linalg.norm(broken - want) > 1e-6
