"""Leading dimensions broadcast in every operation, as geoopt's contract says: each against a loop."""

import itertools

import pytest
import torch

from tenfold.manifolds import (
    FixedRankManifold,
    HierarchicalTuckerManifold,
    TensorTrainManifold,
    TuckerManifold,
)

MANIFOLDS = [
    TuckerManifold((4, 5, 6), (2, 3, 2)),
    TuckerManifold((4, 3, 3, 2), (2, 2), modes=(0, 1)),
    TuckerManifold((3, 5, 4), (3, 2, 2)),  # a square basis
    FixedRankManifold((5, 4), 2),
    TensorTrainManifold((4, 3, 5), 2),
    TensorTrainManifold((3, 2, 2, 3), 2, rows=2),
    HierarchicalTuckerManifold((3, 4, 3, 2), 2),
    TensorTrainManifold((4,), ()),  # a core alone
]
BATCHES = ((), (3,), (2, 1))
POINT, OTHER, VECTOR, SQUARES = range(4)


def operations(m):
    def damped(x):
        return m.damped_frame(x, 0.1)

    def values(x, u, frame=None):
        spectra = m.truncation(x, u, frame=frame).singular_values
        return torch.cat([(x + u)[..., :0], *spectra], dim=-1)

    lifted = m.lifted()
    return {
        "proju": (m.proju, POINT, VECTOR),
        "egrad2rgrad": (m.egrad2rgrad, POINT, VECTOR),
        "inner": (m.inner, POINT, VECTOR, VECTOR),
        "norm": (m.norm, POINT, VECTOR),
        "tangent_to_dense": (m.tangent_to_dense, POINT, VECTOR),
        "retr": (m.retr, POINT, VECTOR),
        "retr by truncation": (m.with_retraction("hosvd").retr, POINT, VECTOR),
        "retr in a frame": (lambda x, u: m.retr(x, u, frame=m.frame(x)), POINT, VECTOR),
        "transp": (m.transp, POINT, OTHER, VECTOR),
        "transp in a frame": (
            lambda x, y, v: m.transp(x, y, v, frame=m.frame(x)),
            POINT,
            OTHER,
            VECTOR,
        ),
        "transp_squares": (m.transp_squares, POINT, OTHER, SQUARES),
        "retr_transp": (lambda x, u, v: torch.cat(m.retr_transp(x, u, v), -1), POINT, VECTOR, VECTOR),
        "transp_follow_retr": (m.transp_follow_retr, POINT, VECTOR, VECTOR),
        "singular values of a sum": (values, POINT, VECTOR),
        "singular values in a frame": (lambda x, u: values(x, u, m.frame(x)), POINT, VECTOR),
        "truncation of a sum": (lambda x, u: m.to_dense(m.truncation(x, u).to(m.rank)[1]), POINT, VECTOR),
        "extended": (lambda x, u: _dense(*m.extended(x, u)), POINT, VECTOR),
        "augment": (lambda x, u: _dense(*m.augment(x, u)), POINT, VECTOR),
        "damped egrad2rgrad": (lambda x, u: m.egrad2rgrad(x, u, frame=damped(x)), POINT, VECTOR),
        "ungauged_gradient": (lambda x, u: m.ungauged_gradient(x, u, damped(x)), POINT, VECTOR),
        "lifted ungauged_gradient": (
            lambda x, u: lifted.ungauged_gradient(x, u, lifted.damped_frame(x, 0.1)),
            POINT,
            VECTOR,
        ),
        "undamped": (lambda x, u: m.undamped(x, u, damped(x)), POINT, VECTOR),
        "damped retr": (lambda x, u: m.retr(x, u, frame=damped(x)), POINT, VECTOR),
    }


def _dense(manifold, x):
    return manifold.to_dense(x)


def drawn(m, kind, batch, seed):
    generator = torch.Generator().manual_seed(seed)
    if kind in (POINT, OTHER):
        return m.random(*batch, m.size, dtype=torch.float64, generator=generator)
    numbers = torch.randn(*batch, m.size, dtype=torch.float64, generator=generator)
    return numbers.square() if kind == SQUARES else 0.1 * numbers


@pytest.mark.parametrize("name", operations(MANIFOLDS[0]))
@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_batches_broadcast_as_in_a_loop(manifold, name):
    operation, *kinds = operations(manifold)[name]
    for batches in itertools.product(BATCHES, repeat=len(kinds)):
        arguments = [
            drawn(manifold, kind, batch, k)
            for k, (kind, batch) in enumerate(zip(kinds, batches, strict=True))
        ]
        together = operation(*arguments)
        batch = torch.broadcast_shapes(*batches)
        single = [item.expand(*batch, manifold.size).reshape(-1, manifold.size) for item in arguments]
        loop = torch.stack([operation(*items) for items in zip(*single, strict=True)])
        assert together.shape == (*batch, *loop.shape[1:]), batches
        torch.testing.assert_close(together, loop.reshape(together.shape), msg=f"{name} of batches {batches}")


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_sums_of_batches_broadcast(manifold):
    other = manifold.with_rank((1,) * len(manifold.tree.ranks))
    for first, second in itertools.product(BATCHES, repeat=2):
        x, y = drawn(manifold, POINT, first, 0), drawn(other, POINT, second, 1)
        truncation = manifold.weighted_sum((0.5, manifold, x), (-2.0, other, y))
        total, z = truncation.to([values.shape[-1] for values in truncation.singular_values])
        want = 0.5 * manifold.to_dense(x) - 2.0 * other.to_dense(y)
        assert z.shape == (*torch.broadcast_shapes(first, second), total.size)
        torch.testing.assert_close(total.to_dense(z), want)
    with pytest.raises(ValueError, match="at least one part"):
        manifold.weighted_sum()
