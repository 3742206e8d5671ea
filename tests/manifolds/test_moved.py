"""Point plus tangent vector in blocks: against the dense sum, and against the sum with its core assembled."""

import math

import pytest
import torch

from tenfold.linalg import rounding_floor
from tenfold.manifolds import (
    FixedRankManifold,
    HierarchicalTuckerManifold,
    TensorTrainManifold,
    TuckerManifold,
    tree_moved,
)

FORMATS = [
    TuckerManifold((4,), (1,)),
    TuckerManifold((9, 4), (3, 3)),
    TuckerManifold((8, 3, 7), (3, 3, 4)),
    TuckerManifold((5, 6, 3, 3), (2, 3), modes=(0, 1)),
    TuckerManifold((5, 6, 2), (4, 6), modes=(0, 1)),
    TuckerManifold((5, 6, 7), (3,), modes=(1,)),
    TuckerManifold((6, 2, 5, 4), (2, 2, 3, 2)),
    FixedRankManifold((7, 8), 3),
    FixedRankManifold((5, 5), 5),
    TensorTrainManifold((4,), ()),
    TensorTrainManifold((6, 5), 2),
    TensorTrainManifold((6, 5), 4),
    TensorTrainManifold((4, 5, 6, 3), (2, 4, 3)),
    TensorTrainManifold((3, 4, 4, 3), (4,), rows=2),
    HierarchicalTuckerManifold((5, 4), 2),
    HierarchicalTuckerManifold((4, 5, 4, 3), (3, 2, 2, 3, 2)),
    HierarchicalTuckerManifold((3, 3, 2, 4, 3), 2),
]
each_format = pytest.mark.parametrize("manifold", FORMATS, ids=str)


def lower_rank(blocks, root):
    """Every block of rank one."""
    return [b if v == root else b[..., :1].expand(b.shape) for v, b in enumerate(blocks)]


def dependent_at_the_end(blocks, root):
    """The last column of every block is the sum of the others."""
    out = []
    for v, b in enumerate(blocks):
        last = b[..., :-1].sum(-1, keepdim=True)
        out.append(b if v == root else torch.cat([b[..., :-1], last], -1))
    return out


def zero_columns(blocks, root):
    """The first column of every block is zero."""
    return [b if v == root else b * (torch.arange(b.shape[-1]) > 0) for v, b in enumerate(blocks)]


KINDS = {
    "general": lambda blocks, root: blocks,
    "zero": lambda blocks, root: [torch.zeros_like(b) for b in blocks],
    "core": lambda blocks, root: [b if v == root else torch.zeros_like(b) for v, b in enumerate(blocks)],
    "bases": lambda blocks, root: [torch.zeros_like(b) if v == root else b for v, b in enumerate(blocks)],
    "rank one": lower_rank,
    "dependent": dependent_at_the_end,
    "zero column": zero_columns,
    "tiny": lambda blocks, root: [1e-9 * b for b in blocks],
    "huge": lambda blocks, root: [1e6 * b for b in blocks],
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def problem(manifold, kind, batch=(), seed=0):
    """Point and tangent vector in float64."""
    generator = torch.Generator().manual_seed(seed)
    x = manifold.random(*batch, manifold.size, dtype=torch.float64, generator=generator)
    blocks = manifold.unpack_tensor(torch.randn(x.shape, dtype=x.dtype, generator=generator))
    u = manifold.pack_point(*KINDS[kind](list(blocks), manifold.tree.root))
    return x, manifold.proju(x, u)


def dense_sum(manifold, x, u):
    return manifold.to_dense(x) + manifold.tangent_to_dense(x, u)


def spectra(manifold, dense):
    """Singular values of the matricisation at the first edge of every rank."""
    found, lead = [], dense.ndim - len(manifold.shape)
    for group in manifold.tree.ranks:
        rows = manifold.tree.modes_below(group[0])
        rest = [m for m in range(len(manifold.shape)) if m not in rows]
        moved = dense.permute(*range(lead), *(lead + m for m in (*rows, *rest)))
        size = math.prod(manifold.shape[m] for m in rows)
        found.append(torch.linalg.svdvals(moved.reshape(*dense.shape[:lead], size, -1)))
    return found


def norm(manifold, dense):
    return torch.linalg.vector_norm(dense, dim=tuple(range(-len(manifold.shape), 0)))


@each_kind
@each_format
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
def test_spectra_are_those_of_the_dense_sum(manifold, kind, batch):
    x, u = problem(manifold, kind, batch)
    dense = dense_sum(manifold, x, u)
    truncation = manifold.truncation(x, u)
    scale = norm(manifold, dense).max()
    for got, want in zip(truncation.singular_values, spectra(manifold, dense), strict=True):
        assert got.shape[-1] <= want.shape[-1]
        got = torch.nn.functional.pad(got, (0, want.shape[-1] - got.shape[-1]))
        torch.testing.assert_close(got, want, rtol=0, atol=1e-13 * scale.item())


@each_kind
@each_format
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
def test_all_ranks_give_the_sum_and_fewer_a_quasi_best_approximation(manifold, kind, batch):
    x, u = problem(manifold, kind, batch)
    dense = dense_sum(manifold, x, u)
    scale = norm(manifold, dense).max().item()
    truncation = manifold.truncation(x, u)
    whole, y = truncation.to([values.shape[-1] for values in truncation.singular_values])
    torch.testing.assert_close(whole.to_dense(y), dense, rtol=0, atol=1e-13 * scale)
    whole.assert_check_point_on_manifold(y, atol=1e-12)
    ranks = manifold.rank if isinstance(manifold.rank, tuple) else (manifold.rank,)
    for wanted in (ranks, [1] * len(ranks)):
        smaller, z = truncation.to(wanted)
        smaller.assert_check_point_on_manifold(z, atol=1e-12)
        tails = sum(
            values[..., kept:].square().sum(-1) * len(group)
            for values, kept, group in zip(
                truncation.singular_values, wanted, manifold.tree.ranks, strict=True
            )
        )
        assert (
            norm(manifold, smaller.to_dense(z) - dense) <= torch.sqrt(torch.as_tensor(tails)) + 1e-12 * scale
        ).all()


@each_format
def test_truncates_as_the_assembled_sum_does(manifold):
    x, u = problem(manifold, "general")
    u = 0.3 * u
    wide, y = manifold.extended(x, u)
    want, got = wide.truncation(y), manifold.truncation(x, u)
    ranks = [
        min(2, a.shape[-1], b.shape[-1])
        for a, b in zip(*(t.singular_values for t in (want, got)), strict=True)
    ]
    torch.testing.assert_close(
        manifold.with_rank(got.to(ranks)[0].rank).to_dense(got.to(ranks)[1]),
        want.to(ranks)[0].to_dense(want.to(ranks)[1]),
        rtol=0,
        atol=1e-10,
    )


@each_format
def test_blocks_that_violate_the_gauge_are_added_all_the_same(manifold):
    x, _ = problem(manifold, "general")
    u = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(5))
    dense = dense_sum(manifold, x, u)
    truncation = manifold.truncation(x, u)
    for got, want in zip(truncation.singular_values, spectra(manifold, dense), strict=True):
        kept = min(len(got), len(want))
        torch.testing.assert_close(got[:kept], want[:kept], rtol=0, atol=1e-12 * want[0].item())
    whole, y = truncation.to([values.shape[-1] for values in truncation.singular_values])
    torch.testing.assert_close(whole.to_dense(y), dense, rtol=0, atol=1e-11)


def conditioned(manifold, x, condition):
    """The point with a geometric spectrum in its core."""
    nodes = list(manifold.unpack_tensor(x))
    core = nodes[manifold.tree.root]
    decay = [float(condition) ** -torch.linspace(0, 1, n, dtype=x.dtype) for n in core.shape]
    for axis, factors in enumerate(decay):
        if axis in range(len(manifold.tree.nodes[manifold.tree.root].children)):
            core = core * factors.reshape([-1 if k == axis else 1 for k in range(core.ndim)])
    nodes[manifold.tree.root] = core
    return manifold.pack_point(*nodes)


@each_kind
@pytest.mark.parametrize("condition", [1.0, 1e4, 1e8])
@pytest.mark.parametrize(
    "manifold",
    [
        TuckerManifold((24, 20, 3, 3), (8, 6), modes=(0, 1)),
        TuckerManifold((12, 20, 10), (8, 6, 5)),
        FixedRankManifold((30, 20), 8),
        TensorTrainManifold((8, 9, 8, 7), (4, 6, 4)),
        HierarchicalTuckerManifold((8, 7, 8, 7), 4),
    ],
    ids=str,
)
def test_single_precision_loses_nothing_to_the_blocks(manifold, condition, kind):
    x, u = problem(manifold, kind)
    x = conditioned(manifold, x, condition)
    low, step = x.float(), u.float()
    dense = dense_sum(manifold, low.double(), step.double())
    scale = norm(manifold, dense).item()
    truncation = manifold.truncation(low, step)
    for got, want in zip(truncation.singular_values, spectra(manifold, dense), strict=True):
        floor = rounding_floor(torch.float32, got.shape[-1]) * scale
        kept = min(len(got), len(want))
        assert (got[:kept].double() - want[:kept]).abs().max() <= floor / 2
        assert got[kept:].norm() <= floor
    for new, y in (
        truncation.to([s.shape[-1] for s in truncation.singular_values]),
        truncation.by_tolerance(0.0),
    ):
        new.assert_check_point_on_manifold(y, atol=2e-6)
        assert norm(manifold, new.to_dense(y.double()) - dense) <= 1e-5 * scale


def test_columns_without_length_need_no_direction_of_their_own():
    """The first unit vectors span the basis; a QR of zero columns hands out the same ones."""
    manifold = TuckerManifold((6, 6, 2), (2, 2), modes=(0, 1))
    core = torch.randn(2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = manifold.pack_point(core, *[torch.eye(6, 2, dtype=torch.float64)] * 2)
    sum = tree_moved.moved(
        manifold.tree,
        manifold.unpack_tensor(x),
        manifold.unpack_tensor(torch.zeros_like(x)),
        manifold.frame(x),
    )
    assert torch.linalg.matrix_rank(sum.nodes[1]) == 2
    kept, y = manifold.truncation(x, torch.zeros_like(x)).by_tolerance(0.0)
    assert kept == manifold
    torch.testing.assert_close(kept.to_dense(y), manifold.to_dense(x))
    wider, z = manifold.truncation(x, torch.zeros_like(x)).to((4, 3))
    wider.assert_check_point_on_manifold(z, atol=1e-12)
    torch.testing.assert_close(wider.to_dense(z), manifold.to_dense(x))


def test_no_array_is_as_large_as_the_core_of_twice_the_ranks():
    manifold = TuckerManifold((40, 40, 9), (10, 10), modes=(0, 1))
    x, u = problem(manifold, "general")
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            largest.extend(t.numel() for t in torch.utils._pytree.tree_leaves(out) if torch.is_tensor(t))
            return out

    with Watch():
        manifold.truncation(x, u).to((10, 10))
    assert max(largest) < 20 * 20 * 9


@each_format
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
def test_runs_without_numbers(manifold, batch):
    x = torch.empty(*batch, manifold.size, device="meta")
    real, step = problem(manifold, "general", batch)
    found = manifold.truncation(x, torch.empty_like(x))
    wanted = manifold.truncation(real, step).singular_values
    assert [s.shape for s in found.singular_values] == [s.shape for s in wanted]
    smaller, y = found.to(1)
    assert y.device.type == "meta"
    assert y.shape == (*batch, smaller.size)
