"""Ranks: the rule, its limits and messages, decisions that no tensor can have, batches."""

import numpy as np
import pytest
import torch

from tenfold.linalg import NonFiniteError, rounding_floor
from tenfold.manifolds import (
    FixedRankManifold,
    HierarchicalTuckerManifold,
    Node,
    TensorTrainManifold,
    TensorTree,
    TreeManifold,
    TuckerManifold,
    ranks_by_tolerance,
)

from . import oracles


def spectrum(*values):
    return torch.tensor(values, dtype=torch.float64)


class TestRule:
    """``r = min {j : |sigma_{j+1:}| <= tol |sigma|}``, clamped."""

    @pytest.mark.parametrize(("tol", "rank"), [(0.0, 4), (1e-3, 4), (0.01, 3), (0.1, 2), (0.5, 1), (0.99, 1)])
    def test_smallest_rank_within_the_tolerance(self, tol, rank):
        assert ranks_by_tolerance([spectrum(1.0, 0.5, 0.05, 0.002)], tol) == (rank,)

    def test_a_tail_equal_to_the_tolerance_is_cut(self):
        assert ranks_by_tolerance([spectrum(4.0, 3.0)], 0.6) == (1,)
        assert ranks_by_tolerance([spectrum(4.0, 3.0)], 0.59999) == (2,)

    def test_tails_add_up(self):
        assert ranks_by_tolerance([spectrum(1.0, *[0.05] * 4)], 0.08) == (3,)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_spectra_that_are_not_finite_are_refused(self, value, dtype):
        broken = torch.tensor([[value, value], [1.0, 0.5]], dtype=dtype)
        with pytest.raises(NonFiniteError, match="NaN or infinite"):
            ranks_by_tolerance([spectrum(1, 0.1), broken], 0.1)
        manifold = FixedRankManifold((5, 4), 2)
        x = manifold.random(dtype=dtype)
        x[0] = value
        with pytest.raises(NonFiniteError):
            manifold.truncate(x, tol=0.1)

    def test_every_spectrum_is_decided_by_itself(self):
        spectra = [spectrum(1.0, 1e-3), spectrum(1.0, 0.9, 0.8), spectrum(5.0)]
        assert ranks_by_tolerance(spectra, 0.1) == (1, 3, 1)
        assert ranks_by_tolerance([], 0.1) == ()

    def test_a_batch_shares_the_largest_rank(self):
        batch = torch.stack([spectrum(1.0, 1e-3, 1e-4), spectrum(1.0, 0.5, 1e-4), spectrum(0.0, 0.0, 0.0)])
        assert ranks_by_tolerance([batch], 0.01) == (2,)
        assert ranks_by_tolerance([batch.reshape(3, 1, 3)], 0.01) == (2,)

    @pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e300])
    def test_scale_does_not_matter(self, scale):
        assert ranks_by_tolerance([scale * spectrum(1.0, 0.5, 0.01)], 0.1) == (2,)

    def test_rounding_counts_as_zero(self):
        for dtype in (torch.float32, torch.float64):
            floor = rounding_floor(dtype, 3)
            assert ranks_by_tolerance([spectrum(1.0, 0.5, 0.5 * floor).to(dtype)], 0.0) == (2,)
            assert ranks_by_tolerance([spectrum(1.0, 0.5, 4 * floor).to(dtype)], 0.0) == (3,)

    @pytest.mark.parametrize(
        ("limits", "ranks"),
        [
            ({"min_rank": 2}, (2, 2, 1)),
            ({"min_rank": (1, 2, 1)}, (1, 2, 1)),
            ({"max_rank": 1}, (1, 1, 1)),
            ({"tol": 0.0, "max_rank": (3, 1, 1)}, (3, 1, 1)),
            ({"tol": 0.0, "max_rank": 9}, (3, 2, 1)),
            ({"min_rank": 9}, (3, 2, 1)),
            ({"min_rank": 2, "max_rank": 2}, (2, 2, 1)),
        ],
    )
    def test_limits(self, limits, ranks):
        spectra = [spectrum(1.0, 0.1, 0.01), spectrum(1.0, 0.01), spectrum(1.0)]
        assert ranks_by_tolerance(spectra, **({"tol": 0.5} | limits)) == ranks

    @pytest.mark.parametrize("tol", [-0.1, 1.0, 2.0, float("nan"), float("inf")])
    def test_tolerances_outside_of_the_unit_interval_are_refused(self, tol):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
            ranks_by_tolerance([spectrum(1.0)], tol)

    @pytest.mark.parametrize(
        ("limits", "message"),
        [
            ({"min_rank": 0}, "min_rank must be integers of at least 1"),
            ({"max_rank": -1}, "max_rank must be integers of at least 1"),
            ({"max_rank": 1.5}, "max_rank must be an integer or a sequence"),
            ({"min_rank": True}, "min_rank must be an integer or a sequence"),
            ({"min_rank": (1, 2)}, "min_rank needs one number or 1 of them"),
            ({"min_rank": 3, "max_rank": 2}, "min_rank 3 exceeds max_rank 2"),
        ],
    )
    def test_senseless_limits_are_refused(self, limits, message):
        with pytest.raises((ValueError, TypeError), match=message):
            ranks_by_tolerance([spectrum(1.0)], 0.1, **limits)


FORMATS = [
    TuckerManifold((5, 4, 6), (3, 3, 4)),
    TuckerManifold((5, 4, 2, 2), (4, 3), modes=(0, 1)),
    FixedRankManifold((6, 5), 4),
    TensorTrainManifold((4, 5, 3, 4), (3, 4, 3)),
    TensorTrainManifold((3, 2, 2, 3), 4, rows=2),
    HierarchicalTuckerManifold((4, 3, 3, 4), 3),
]
each_format = pytest.mark.parametrize("manifold", FORMATS, ids=str)


def tucker_like(shape, rank, noise=0.0, batch=()):
    """A dense tensor of low multilinear rank (hence of low rank in every format) and some noise."""
    generator = torch.Generator().manual_seed(0)
    small = TuckerManifold(shape, tuple(min(rank, side) for side in shape))
    dense = small.to_dense(small.random(*batch, small.size, dtype=torch.float64, generator=generator))
    scale = dense.square().sum(tuple(range(-len(shape), 0)), keepdim=True).sqrt()
    extra = torch.randn(*dense.shape, dtype=torch.float64, generator=generator)
    return dense / scale + noise * extra / extra.norm()


@each_format
def test_messages_of_tolerances_and_limits(manifold):
    x = manifold.random()
    for action in (
        lambda **k: manifold.truncate(x, **k),
        lambda **k: manifold.retr_adaptive(x, torch.zeros_like(x), **k),
        lambda **k: manifold.approximate(manifold.to_dense(x), **k),
        lambda **k: manifold.truncation(x).by_tolerance(k.pop("tol", 0.0), **k),
    ):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
            action(tol=1.0)
        with pytest.raises(ValueError, match="min_rank"):
            action(min_rank=0)
        with pytest.raises(ValueError, match="exceeds"):
            action(min_rank=3, max_rank=1)


@each_format
@pytest.mark.parametrize("tol", [0.0, 0.01, 0.1, 0.4])
def test_error_is_within_the_root_of_the_squared_tails(manifold, tol):
    dense = tucker_like(manifold.shape, 2, noise=0.05)
    smaller, y = manifold.approximate(dense, tol=tol)
    ranks = [smaller.rank] if isinstance(smaller.rank, int) else smaller.rank
    error = (smaller.to_dense(y) - dense).norm().item()
    assert error <= tol * np.sqrt(len(ranks)) + 1e-12


@each_format
def test_lower_rank_is_found_exactly(manifold):
    dense = tucker_like(manifold.shape, 1)
    smaller, y = manifold.approximate(dense)
    assert set([smaller.rank] if isinstance(smaller.rank, int) else smaller.rank) == {1}
    torch.testing.assert_close(smaller.to_dense(y), dense)
    again, z = manifold.truncate(manifold.from_dense(dense))
    assert again == smaller
    torch.testing.assert_close(again.to_dense(z), dense)


@each_format
def test_a_batch_shares_its_ranks_and_loses_nothing(manifold):
    low, high = tucker_like(manifold.shape, 1), tucker_like(manifold.shape, 2)
    both = torch.stack([low, high])
    smaller, y = manifold.approximate(both)
    assert smaller == manifold.approximate(high)[0]
    assert y.shape == (2, smaller.size)
    torch.testing.assert_close(smaller.to_dense(y), both)


@each_format
def test_growing_and_shrinking(manifold):
    x = manifold.random(dtype=torch.float64)
    u = manifold.proju(x, torch.randn_like(x))
    grown, y = manifold.retr_adaptive(x, u)
    torch.testing.assert_close(grown.to_dense(y), manifold.to_dense(x) + manifold.tangent_to_dense(x, u))
    ranks = np.atleast_1d(manifold.rank)
    assert (ranks <= np.atleast_1d(grown.rank)).all()
    assert (np.atleast_1d(grown.rank) <= 2 * ranks).all()
    capped, _ = manifold.retr_adaptive(x, u, max_rank=tuple(int(r) for r in ranks))
    assert capped == manifold
    same, z = manifold.retr_adaptive(x, torch.zeros_like(u))
    assert same == manifold
    torch.testing.assert_close(same.to_dense(z), manifold.to_dense(x))


@each_format
def test_decisions_on_ranks_that_are_not_there_are_refused(manifold):
    truncation = manifold.truncation(manifold.random())
    count = len(truncation.singular_values)
    for wanted in [(0,) * count, (99,) * count, (1,) * (count + 1), ()]:
        with pytest.raises(ValueError, match="cannot truncate"):
            truncation.to(wanted)
    smallest, _ = truncation.to(1)
    assert set(np.atleast_1d(smallest.rank)) == {1}


def test_infeasible_decisions_are_repaired_without_loss():
    """Ranks (3, 1, 2) no tensor has: the second cut, to (2, 1, 2), changes nothing."""
    dense = torch.randn(4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    manifold = TuckerManifold((4, 4, 4), 4)
    truncation = manifold.truncation(manifold.from_dense(dense))
    repaired, y = truncation.to((3, 1, 2))
    assert repaired.rank == (2, 1, 2)
    want = oracles.multilinear_truncation(dense.numpy(), (0, 1, 2), (3, 1, 2))
    np.testing.assert_allclose(repaired.to_dense(y).numpy(), want, atol=1e-12)
    repaired.assert_check_point_on_manifold(y, atol=1e-12)


def test_infeasible_decisions_of_trains_are_repaired_without_loss():
    manifold = TensorTrainManifold((3, 3, 3, 3), (3, 9, 3))
    dense = torch.randn(3, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    truncation = manifold.truncation(manifold.from_dense(dense))
    repaired, y = truncation.to((1, 9, 3))
    assert repaired.rank == (1, 3, 3)
    first = oracles.matricise(dense.numpy(), [0])
    u, _, _ = np.linalg.svd(first)
    want = (np.outer(u[:, 0], u[:, 0]) @ first).reshape(3, 3, 3, 3)
    np.testing.assert_allclose(repaired.to_dense(y).numpy(), want, atol=1e-12)


def test_infeasible_decisions_of_hierarchical_tucker_stay_within_the_tolerance():
    manifold = HierarchicalTuckerManifold((4, 4, 4, 4), 3)
    dense = torch.randn(4, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    truncation = manifold.truncation(manifold.from_dense(dense))
    repaired, y = truncation.to((3, 1, 2, 3, 1))
    assert manifold.with_rank(repaired.rank) == repaired
    assert all(a <= b for a, b in zip(repaired.rank, (3, 1, 2, 3, 1), strict=True))
    repaired.assert_check_point_on_manifold(y, atol=1e-12)


def shared(*groups):
    """A Tucker tree whose edges share ranks, though each has a spectrum of its own."""
    leaves = [Node(modes=(mode,)) for mode in range(3)]
    return TensorTree([Node(children=(1, 2, 3)), *leaves], root=0, ranks=groups)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TuckerManifold((4, 3), (5, 2)), r"Tucker rank \(5, 2\).*feasible rank below it is \(2, 2\)"),
        (lambda: TuckerManifold((4, 3, 2), 4), r"feasible rank below it is \(4, 3, 2\)"),
        (lambda: TuckerManifold((9, 4, 2, 2), (9, 1), (0, 1)), r"feasible rank below it is \(4, 1\)"),
        (lambda: FixedRankManifold((4, 3), 4), r"fixed-rank rank \(4,\).*feasible rank below it is \(3,\)"),
        (lambda: TensorTrainManifold((2, 3, 4), (3, 4)), r"feasible rank below it is \(2, 4\)"),
        (lambda: HierarchicalTuckerManifold((3, 3), (4,)), r"feasible rank below it is \(3,\)"),
        (lambda: TuckerManifold((4, 3), (2,)), "has 2 ranks, got"),
        (lambda: TensorTrainManifold((4, 3, 2), (2, 2, 2)), "has 2 ranks, got"),
        (lambda: TensorTrainManifold((4, 3, 2), (2, 2, 2, 1)), "boundary ranks of a Tensor Train are 1"),
        (lambda: TensorTrainManifold((4, 3, 2), 2, rows=2), "rows must be 0 or half"),
        (lambda: TuckerManifold((4, 3), (0, 2)), "integers of at least 1"),
        (lambda: TuckerManifold((4, 3), (1.5, 2)), "integers of at least 1"),
        (lambda: TuckerManifold((4, True), (1, 1)), "integers of at least 1"),
        (lambda: TuckerManifold((4, 0), 1), "integers of at least 1"),
        (lambda: TuckerManifold((4, 3), 1, modes=(1, 0)), "increasing modes"),
        (lambda: TuckerManifold((4, 3), 1, modes=(2,)), "increasing modes"),
        (lambda: TuckerManifold((4, 3), (), modes=()), "at least one compressed mode"),
        (lambda: FixedRankManifold((4, 3, 2), 1), r"needs a shape \(m, n\)"),
        (lambda: HierarchicalTuckerManifold((4,), 1), "at least two modes"),
        (lambda: TensorTrainManifold((), 1), "at least one mode"),
        (lambda: TensorTrainManifold((3, 3), 0), "integers of at least 1"),
        (lambda: HierarchicalTuckerManifold((3, 3), 0), "integers of at least 1"),
        (lambda: shared((1, 2, 3)), r"edges \(1, 2, 3\) cannot share a rank"),
        (lambda: shared((1,), (2, 3)), r"edges \(2, 3\) cannot share a rank"),
        (lambda: shared((1,), (2,), (3,), ()), r"edges \(\) cannot share a rank"),
        (lambda: TensorTree([Node(children=(1,), modes=(0,)), Node()], root=0), "needs children or modes"),
    ],
)
def test_messages_of_constructors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("rank", [2.0, None, torch.tensor(2)], ids=str)
def test_a_rank_of_another_type_is_refused(rank):
    for make in (lambda: TuckerManifold((4, 3), rank), lambda: TensorTrainManifold((4, 3), rank)):
        with pytest.raises(TypeError, match="rank must be an integer or a sequence"):
            make()
    with pytest.raises(TypeError, match="rank must be an integer or a sequence"):
        TuckerManifold((4, 3), 2).with_rank(rank)


def test_edges_of_one_matricisation_may_share_a_rank():
    """A chain: both edges separate the same modes."""
    nodes = [Node(children=(1,), modes=(2,)), Node(children=(2,)), Node(modes=(0, 1))]
    manifold = TreeManifold(TensorTree(nodes, root=0, ranks=[(1, 2)]), (2, 3, 4), 2)
    x = manifold.random(dtype=torch.float64)
    smaller, y = manifold.truncate(x, max_rank=1)
    tail = manifold.singular_values(x)[0][1]
    torch.testing.assert_close((smaller.to_dense(y) - manifold.to_dense(x)).norm(), tail)


def test_one_number_is_lowered_where_the_docstring_says_so():
    assert TensorTrainManifold((2, 5, 5, 2), 9).rank == (2, 9, 2)
    assert HierarchicalTuckerManifold((2, 2, 2), 9).rank == HierarchicalTuckerManifold((2, 2, 2), 4).rank


def test_transport_between_formats_is_refused():
    tucker, train = TuckerManifold((4, 3, 2), 1), TensorTrainManifold((4, 3, 2), 1)
    x, y = tucker.random(), train.random()
    with pytest.raises(ValueError, match="cannot transport"):
        tucker.transp(x, y, x, target=train)
    other = TuckerManifold((4, 3, 3), 1)
    with pytest.raises(ValueError, match="cannot transport"):
        tucker.transp(x, other.random(), x, target=other)
