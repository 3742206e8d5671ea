"""Zero, singular, huge, tiny and broken input, and ten thousand steps in single precision."""

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
from tenfold.testing import Spectrum, point_with

MANIFOLDS = [
    TuckerManifold((4, 4, 4), (2, 2, 2)),
    TuckerManifold((5, 4, 3), (3, 3, 2)),
    TuckerManifold((5, 4, 2, 2), (3, 2), modes=(0, 1)),
    FixedRankManifold((6, 5), 3),
    FixedRankManifold((4, 4), 4),
    TensorTrainManifold((4, 3, 4), (3, 2)),
    TensorTrainManifold((4,), ()),
    TensorTrainManifold((3, 2, 2, 3), 2, rows=2),
    HierarchicalTuckerManifold((3, 3, 3, 3), 2),
]
each_manifold = pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
SIZES = [0.0, 1e-20, 1.0, 1e20]


def scaled_point(manifold, size, spectrum, dtype=torch.float32):
    x = point_with(manifold, generator=torch.Generator().manual_seed(0), dtype=dtype, spectrum=spectrum)
    factors = list(manifold.unpack_tensor(x))
    factors[manifold.tree.root] = size * factors[manifold.tree.root]
    return manifold.pack_point(*factors)


def autograd_gradient(manifold, x, dense_gradient):
    x = x.clone().requires_grad_()
    return torch.autograd.grad((dense_gradient * manifold.to_dense(x)).sum(), x)[0]


def results(m, x, gradient, u, v):
    if torch.isfinite(gradient).all():  # autograd overflows before the manifold where both are huge
        yield "egrad2rgrad", m.egrad2rgrad(x, gradient)
    yield "retr", m.retr(x, u)
    y, w = m.retr_transp(x, u, v)
    yield "retr_transp", torch.cat([y, w], -1)
    yield "transp", m.transp(y, x, w)
    for tol in (0.0, 0.1, 0.9):
        yield "truncate", m.truncate(x, tol=tol)[1]
        yield "retr_adaptive", m.retr_adaptive(x, u, tol=tol)[1]
    yield "to", m.truncation(x, u).to(1)[1]


@each_manifold
@pytest.mark.parametrize("spectrum", Spectrum, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", SIZES)
def test_finite_results_in_single_precision(manifold, spectrum, size, step):
    """At any scale of point and step, at equal and zero singular values, nothing becomes NaN or infinite."""
    x = scaled_point(manifold, size, spectrum)
    generator = torch.Generator().manual_seed(1)
    u = step * manifold.proju(x, torch.randn(manifold.size, generator=generator))
    v = manifold.proju(x, torch.randn(manifold.size, generator=generator))
    gradient = autograd_gradient(manifold, x, step * torch.randn(manifold.shape, generator=generator))
    for name, result in results(manifold, x, gradient, u, v):
        assert torch.isfinite(result).all(), name


@each_manifold
def test_scale_does_not_matter(manifold):
    """The bases after a step are those at scale 1, whatever the common scale of point and step."""
    x = scaled_point(manifold, 1.0, Spectrum.DECAY, torch.float64)
    u = 0.1 * manifold.proju(x, torch.randn(manifold.size, dtype=torch.float64))
    want = manifold.to_dense(manifold.retr(x, u))
    ranks = manifold.truncate(x, tol=0.3)[0].rank
    for size in (1e-200, 1e-20, 1e20, 1e200):
        big = scaled_point(manifold, size, Spectrum.DECAY, torch.float64)
        got = manifold.to_dense(manifold.retr(big, size * u)) / size
        torch.testing.assert_close(got, want)
        assert manifold.truncate(big, tol=0.3)[0].rank == ranks


@each_manifold
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_norms_at_any_scale_in_single_precision(manifold, size):
    x = manifold.random(2, manifold.size, generator=torch.Generator().manual_seed(0))
    u = manifold.proju(x, torch.randn(2, manifold.size, generator=torch.Generator().manual_seed(1)))
    want = size * u.double().norm(dim=-1)
    torch.testing.assert_close(manifold.norm(x, size * u).double(), want, rtol=1e-5, atol=0.0)
    kept = manifold.norm(x, size * u, keepdim=True)
    torch.testing.assert_close(kept.double(), want.unsqueeze(-1), rtol=1e-5, atol=0.0)


@each_manifold
@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
def test_growth_is_relative_at_any_scale_in_single_precision(manifold, size):
    small = manifold.with_rank((1,) * len(manifold.tree.ranks))
    if small == manifold:
        return
    x = small.random(generator=torch.Generator().manual_seed(0))
    factors = list(small.unpack_tensor(x))
    factors[small.tree.root] = size * factors[small.tree.root]
    x = small.pack_point(*factors)
    larger, y = grow(small, x, manifold.rank, scale=1e-2, generator=torch.Generator().manual_seed(1))
    before, after = small.to_dense(x).double(), larger.to_dense(y).double()
    assert ((after - before).norm() / before.norm()).item() == pytest.approx(1e-2, rel=1e-4)


@each_manifold
def test_a_step_of_zero_keeps_the_tensor_at_singular_points_and_everything_elsewhere(manifold):
    """Where singular values vanish their directions are arbitrary, and only the others stay."""
    for spectrum in Spectrum:
        x = scaled_point(manifold, 1.0, spectrum, torch.float64)
        y = manifold.retr(x, torch.zeros_like(x))
        manifold.assert_check_point_on_manifold(y, atol=1e-12)
        torch.testing.assert_close(manifold.to_dense(y), manifold.to_dense(x), atol=1e-14, rtol=0.0)
        for before, after in zip(manifold.singular_values(x), manifold.singular_values(y), strict=True):
            torch.testing.assert_close(after, before, atol=1e-14, rtol=0.0)
        if spectrum is not Spectrum.ZERO:
            torch.testing.assert_close(y, x, atol=1e-13, rtol=0.0)


@each_manifold
def test_a_zero_gradient_moves_nothing(manifold):
    for spectrum in Spectrum:
        x = scaled_point(manifold, 1.0, spectrum, torch.float64)
        rgrad = manifold.egrad2rgrad(x, torch.zeros_like(x))
        assert not rgrad.any()
        y = manifold.retr(x, rgrad)
        torch.testing.assert_close(manifold.to_dense(y), manifold.to_dense(x))
        if spectrum is not Spectrum.ZERO:  # bases of singular directions are arbitrary
            torch.testing.assert_close(y, x)


@each_manifold
def test_steps_from_the_zero_tensor_gain_what_the_gradient_asks_for(manifold):
    x = scaled_point(manifold, 0.0, Spectrum.DECAY, torch.float64)
    assert not manifold.to_dense(x).any()
    u = manifold.radial(manifold.random(dtype=torch.float64))
    torch.testing.assert_close(manifold.tangent_to_dense(x, u), manifold.to_dense(manifold.retr(x, u)))


@each_manifold
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_broken_numbers_are_rejected_with_a_reason(manifold, value):
    x = manifold.random(dtype=torch.float64)
    for position in (0, -1):
        broken = x.clone()
        broken[position] = value
        for ok, reason in (
            manifold.check_point_on_manifold(broken, explain=True),
            manifold.check_vector_on_tangent(x, broken, explain=True),
        ):
            assert not ok
            assert "NaN or infinity" in reason
        with pytest.raises(ValueError, match="NaN or infinity"):
            manifold.assert_check_point_on_manifold(broken)


@each_manifold
def test_operations_leave_their_arguments_alone(manifold):
    x = manifold.random(3, manifold.size, dtype=torch.float64)
    u = manifold.proju(x, torch.randn_like(x))
    dense = manifold.to_dense(x)
    before = [part.clone() for part in (x, u, dense)]
    for _ in results(manifold, x, u, u, u):
        pass
    manifold.projx(x), manifold.proju(x, u), manifold.radial(x), manifold.inner(x, u, u)
    manifold.project_dense(x, dense), manifold.from_dense(dense), manifold.approximate(dense, tol=0.1)
    for part, was in zip((x, u, dense), before, strict=True):
        assert torch.equal(part, was)


@each_manifold
def test_views_and_strides_do_not_matter(manifold):
    x = manifold.random(4, manifold.size, dtype=torch.float64)
    u = manifold.proju(x, torch.randn_like(x))
    strided = torch.stack([x, x], dim=-1)[..., 0]
    backwards = u.flip(0).flip(0).mT.contiguous().mT
    assert not strided.is_contiguous()
    torch.testing.assert_close(manifold.retr(strided, backwards), manifold.retr(x, u))
    torch.testing.assert_close(
        manifold.from_dense(manifold.to_dense(x).mT.mT), manifold.from_dense(manifold.to_dense(x))
    )


@each_manifold
def test_empty_batches(manifold):
    x = manifold.random(0, manifold.size)
    assert manifold.retr(x, x).shape == x.shape
    assert manifold.retr_transp(x, x, x)[1].shape == x.shape
    assert manifold.egrad2rgrad(x, x).shape == x.shape
    assert manifold.to_dense(x).shape == (0, *manifold.shape)
    assert manifold.check_point_on_manifold(x)
    assert manifold.check_vector_on_tangent(x, x)
    assert manifold.check_vector_on_tangent(manifold.random(), x)
    assert manifold.gradient_conditioning(manifold.frame(x)) is None
    for matrix, block in zip(manifold.tangent_matrices(x), manifold.unpack_tensor(x), strict=True):
        assert matrix.shape[0] == 0
        assert math.prod(matrix.shape[1:]) == math.prod(block.shape[1:])


@each_manifold
def test_an_empty_batch_needs_no_ranks(manifold):
    x = manifold.random(0, manifold.size)
    for smaller, y in (
        manifold.truncate(x, tol=0.1),
        manifold.retr_adaptive(x, x),
        manifold.approximate(manifold.to_dense(x)),
    ):
        assert smaller == manifold.with_rank((1,) * len(manifold.tree.ranks))
        assert y.shape == (0, smaller.size)


@pytest.mark.parametrize(
    "manifold",
    [
        FixedRankManifold((6, 5), 2),
        pytest.param(TuckerManifold((6, 5, 4), 2), marks=pytest.mark.slow),
        pytest.param(TensorTrainManifold((4, 4, 4), 2), marks=pytest.mark.slow),
        pytest.param(HierarchicalTuckerManifold((4, 4, 4), 2), marks=pytest.mark.slow),
    ],
    ids=lambda m: m.name,
)
def test_ten_thousand_steps_keep_the_factors_orthonormal(manifold):
    """``|U^T U - I| <= 1e-5`` after ten thousand retractions in float32."""
    generator = torch.Generator().manual_seed(0)
    x = manifold.random(generator=generator)
    steps = 0.1 * torch.randn(100, manifold.size, generator=generator)
    for k in range(10_000):
        x = manifold.retr(x, manifold.proju(x, steps[k % 100]))
    ok, reason = manifold.check_point_on_manifold(x, explain=True, atol=1e-5, rtol=0.0)
    assert ok, reason
