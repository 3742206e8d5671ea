"""The four formats against formulas of the literature, evaluated in NumPy without the library."""

import itertools
import math

import numpy as np
import pytest
import torch

from tenfold.manifolds import (
    FixedRankManifold,
    HierarchicalTuckerManifold,
    TensorTrainManifold,
    TuckerManifold,
    rank_tuple,
    tree_calculus,
)
from tenfold.manifolds.tree_transport import Bases
from tenfold.testing import other_gauge

from . import oracles

FORMATS = [
    TuckerManifold((4,), (1,)),
    TuckerManifold((4, 3), (2, 2)),
    TuckerManifold((4, 3, 5), (2, 3, 4)),
    TuckerManifold((3, 2, 3, 2), (2, 1, 3, 2)),
    TuckerManifold((2, 3, 2, 2, 2), (2, 2, 1, 2, 2)),
    TuckerManifold((5, 4, 3, 2), (3, 2), modes=(0, 1)),
    TuckerManifold((3, 4, 5), (3,), modes=(1,)),
    TuckerManifold((3, 4, 5), (2, 3), modes=(0, 2)),
    FixedRankManifold((5, 4), 3),
    FixedRankManifold((4, 4), 4),
    TensorTrainManifold((4, 3), 2),
    TensorTrainManifold((4, 3, 5), (3, 2)),
    TensorTrainManifold((3, 2, 3, 2), (2, 4, 2)),
    TensorTrainManifold((2, 3, 2, 3, 2), (2, 3, 3, 2)),
    TensorTrainManifold((2, 3, 3, 2), (4,), rows=2),
    TensorTrainManifold((2, 2, 3, 2, 3, 2), (3, 4), rows=3),
    HierarchicalTuckerManifold((4, 3), 2),
    HierarchicalTuckerManifold((3, 2, 4), 2),
    HierarchicalTuckerManifold((3, 2, 3, 2), (3, 2, 2, 3, 2)),
    HierarchicalTuckerManifold((2, 3, 2, 2, 3), 2),
]


def packed(manifold, seed=0):
    """A random point in a general gauge, as a tensor."""
    generator = torch.Generator().manual_seed(seed)
    x = manifold.random(dtype=torch.float64, generator=generator)
    return other_gauge(manifold, x, generator)


def dense_of(manifold):
    """Packed points to dense tensors, both as arrays."""

    def dense(x):
        sizes = np.cumsum([math.prod(shape) for shape in manifold.factor_shapes])[:-1]
        parts = [
            part.reshape(shape)
            for part, shape in zip(np.split(x, sizes), manifold.factor_shapes, strict=True)
        ]
        match manifold:
            case FixedRankManifold():
                return parts[1] @ parts[0] @ parts[2].T
            case TuckerManifold():
                return oracles.tucker_dense(parts[0], parts[1:], manifold.modes)
            case HierarchicalTuckerManifold():
                return oracles.ht_dense(parts, len(manifold.shape)).reshape(manifold.shape)
            case TensorTrainManifold(rows=0):
                return oracles.train_dense(parts)
        pairs = [
            part.reshape(*part.shape[:1] * (k > 0), -1, *part.shape[-1:] * (k < len(parts) - 1))
            for k, part in enumerate(parts)
        ]
        matrix = oracles.train_dense(pairs)
        rows = manifold.rows
        split = matrix.reshape(
            [side for k in range(rows) for side in (manifold.shape[k], manifold.shape[k + rows])]
        )
        return np.transpose(split, [*range(0, 2 * rows, 2), *range(1, 2 * rows, 2)])

    return dense


def rank_modes(manifold):
    """For every rank the modes on one side of its matricisation."""
    order = len(manifold.shape)
    match manifold:
        case FixedRankManifold():
            return [[0]]
        case TuckerManifold():
            return [[mode] for mode in manifold.modes]
        case TensorTrainManifold(rows=0):
            return [list(range(k)) for k in range(1, order)]
        case TensorTrainManifold():
            rows = manifold.rows
            return [[*range(k), *range(rows, rows + k)] for k in range(1, rows)]

    def halves(modes):
        half = (len(modes) + 1) // 2
        for part in (modes[:half], modes[half:]) if len(modes) > 1 else ():
            yield part
            yield from halves(part)

    first, *parts = halves(list(range(order)))
    parts.remove([mode for mode in range(order) if mode not in first])  # the other half of the root
    return [first, *parts]


def formula_of_dimension(manifold):
    match manifold:
        case FixedRankManifold():
            (m, n), r = manifold.shape, manifold.rank
            return r * (m + n - r)
        case TuckerManifold():
            core = math.prod(manifold.factor_shapes[0])
            sides = [manifold.shape[mode] for mode in manifold.modes]
            return core + sum(r * (n - r) for n, r in zip(sides, manifold.rank, strict=True))
        case TensorTrainManifold():
            ranks = [1, *manifold.rank, 1]
            rows, shape = manifold.rows, manifold.shape
            sides = [shape[k] * shape[k + rows] for k in range(rows)] if rows else shape
            cores = sum(a * n * b for a, n, b in zip(ranks, sides, ranks[1:], strict=False))
            return cores - sum(r * r for r in manifold.rank)
    # sum over nodes of r_left r_right r - r^2 (Uschmajew and Vandereycken, 2013), the root without r.
    shapes = [math.prod(shape) for shape in manifold.factor_shapes]
    return sum(shapes) - sum(shape[-1] ** 2 for shape in manifold.factor_shapes[1:])


each_format = pytest.mark.parametrize("manifold", FORMATS, ids=str)


@each_format
def test_dense_tensor(manifold):
    x = packed(manifold)
    np.testing.assert_allclose(manifold.to_dense(x).numpy(), dense_of(manifold)(x.numpy()), atol=1e-13)


@each_format
def test_dimension(manifold):
    assert manifold.dim == formula_of_dimension(manifold)


@each_format
def test_projection_on_an_explicit_basis(manifold):
    x = packed(manifold)
    basis = oracles.tangent_basis(dense_of(manifold), x.numpy(), manifold.dim)
    z = torch.randn(*manifold.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u = manifold.project_dense(x, z)
    want = basis @ (basis.T @ z.numpy().ravel())
    np.testing.assert_allclose(manifold.tangent_to_dense(x, u).numpy().ravel(), want, atol=1e-8)
    assert manifold.norm(x, u).item() == pytest.approx(np.linalg.norm(want))


@each_format
def test_gradient_is_the_projected_dense_gradient(manifold):
    x = packed(manifold, 2)
    basis = oracles.tangent_basis(dense_of(manifold), x.numpy(), manifold.dim)
    point = x.clone().requires_grad_()
    manifold.to_dense(point).pow(3).sum().backward()
    rgrad = manifold.tangent_to_dense(x, manifold.egrad2rgrad(x, point.grad)).numpy().ravel()
    gradient = 3 * dense_of(manifold)(x.numpy()).ravel() ** 2
    np.testing.assert_allclose(rgrad, basis @ (basis.T @ gradient), atol=1e-7 * np.linalg.norm(gradient))


@each_format
def test_singular_values_are_those_of_the_matricisations(manifold):
    x = packed(manifold)
    dense = dense_of(manifold)(x.numpy())
    spectra = manifold.singular_values(x)
    assert len(spectra) == len(rank_modes(manifold))
    for values, rows in zip(spectra, rank_modes(manifold), strict=True):
        want = np.linalg.svd(oracles.matricise(dense, rows), compute_uv=False)
        np.testing.assert_allclose(values.numpy(), want[: len(values)], atol=1e-12)
        np.testing.assert_allclose(want[len(values) :], 0.0, atol=1e-12)


@each_format
def test_transport_is_the_projection_on_the_new_basis(manifold):
    x, y = packed(manifold, 0), packed(manifold, 1)
    v = manifold.proju(x, torch.randn(manifold.size, dtype=torch.float64))
    basis = oracles.tangent_basis(dense_of(manifold), y.numpy(), manifold.dim)
    ambient = manifold.tangent_to_dense(x, v).numpy().ravel()
    moved = manifold.tangent_to_dense(y, manifold.transp(x, y, v)).numpy().ravel()
    np.testing.assert_allclose(moved, basis @ (basis.T @ ambient), atol=1e-7)


@each_format
def test_transport_between_cores_in_the_same_bases(manifold):
    """Frames that are passed and bases that stay save work and change nothing, in batches neither."""
    x = torch.stack([packed(manifold, 0), packed(manifold, 1)])
    y = x + 0.3 * manifold.radial(torch.randn_like(x))
    v, squares = manifold.proju(x, torch.randn_like(x)), torch.rand_like(x)
    frames = {"frame": manifold.frame(x), "target_frame": manifold.frame(y)}
    for carry, tangent in ((manifold.transp, v), (manifold.transp_squares, squares)):
        want = carry(x, y, tangent)
        torch.testing.assert_close(carry(x, y, tangent, **frames), want)
        torch.testing.assert_close(carry(x, y, tangent, bases=Bases.SAME), want)


@pytest.mark.parametrize("same", [False, True], ids=["other bases", "same bases"])
@pytest.mark.parametrize(
    "manifold",
    [m for m in FORMATS if isinstance(m, TuckerManifold | FixedRankManifold) and len(m.shape) > 1],
    ids=str,
)
def test_second_moments_by_overlaps_of_dense_bases(manifold, same):
    """Along every axis by the squares of the overlaps; what is not inherited is the mean of the block."""
    x = packed(manifold, 0)
    y = x + 0.3 * manifold.radial(torch.randn_like(x)) if same else packed(manifold, 1)
    squares = torch.rand_like(x)
    core, *blocks = (block.numpy() for block in manifold.unpack_tensor(squares))
    bases = [[factor.numpy() for factor in manifold.unpack_tensor(point)[1:]] for point in (x, y)]
    tensors = [dense_of(manifold)(point.numpy()) for point in (x, y)]

    def filled(block, turn):
        inherited, share = turn(block), turn(np.ones_like(block))
        return inherited + block.mean() * np.maximum(1 - share, 0)

    def along_all(block):
        for axis, (old, new) in enumerate(zip(*bases, strict=True)):
            block = np.moveaxis(np.tensordot(block, (old.T @ new) ** 2, axes=(axis, 0)), -1, axis)
        return block

    want = [filled(core, along_all)]
    modes = getattr(manifold, "modes", (0, 1))
    for mode, block, *pair in zip(modes, blocks, *bases, strict=True):
        around = []
        for tensor, basis in zip(tensors, pair, strict=True):
            q, r = np.linalg.qr(oracles.matricise(tensor, [mode]).T @ basis)
            around.append(q * np.sign(np.diag(r)))
        overlap = (around[0].T @ around[1]) ** 2
        want.append(filled(block, lambda part, overlap=overlap: part @ overlap))
    known = {"bases": Bases.SAME} if same else {}
    got = manifold.unpack_tensor(manifold.transp_squares(x, y, squares, **known))
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one.numpy(), other, atol=1e-9)


@each_format
def test_transport_to_augmented_bases(manifold):
    """Nothing but padding, which loses nothing of a tangent vector, in batches neither."""
    x = torch.stack([packed(manifold, 0), packed(manifold, 1)])
    u, v = (manifold.proju(x, torch.randn_like(x)) for _ in range(2))
    frame = manifold.frame(x)
    wide, y = manifold.augment(x, u, frame=frame)
    moved = manifold.transp(x, y, v, target=wide, frame=frame, bases=Bases.AUGMENTED)
    there = manifold.augmented_frame(frame, y, wide)
    torch.testing.assert_close(wide.to_dense(y), manifold.to_dense(x))
    torch.testing.assert_close(wide.proju(y, moved), moved)
    # The surroundings of new directions are zero, in which nothing lies.
    dense = tree_calculus.dense_tangent(
        wide.tree, wide.unpack_tensor(y), wide.unpack_tensor(moved), there, wide.shape
    )
    torch.testing.assert_close(dense, manifold.tangent_to_dense(x, v))
    torch.testing.assert_close(wide.norm(y, moved), manifold.norm(x, v))
    torch.testing.assert_close(there.upper, wide.frame(y).upper)

    # At ranks that no tensor can have, too, a truncation knows as many singular values.
    z = y + 0.3 * wide.radial(torch.randn_like(y))
    known = wide.truncation(z, frame=wide.frame(z)).singular_values
    torch.testing.assert_close(known, wide.truncation(z).singular_values)

    squares = torch.rand_like(x)
    blocks = manifold.unpack_tensor(squares)
    carried = wide.unpack_tensor(manifold.transp_squares(x, y, squares, target=wide, bases=Bases.AUGMENTED))
    for block, other in zip(blocks, carried, strict=True):
        old = other[(slice(None), *(slice(n) for n in block.shape[1:]))]
        torch.testing.assert_close(old, block)
        fresh = other.numel() - old.numel()
        mean = block.flatten(1).mean(1) * (fresh / len(block))
        torch.testing.assert_close(other.flatten(1).sum(1) - old.flatten(1).sum(1), mean)


@each_format
def test_size_at_other_ranks(manifold):
    for rank in itertools.product(range(1, 4), repeat=len(manifold.tree.ranks)):
        feasible = manifold.tree.clip(manifold.shape, rank)
        assert manifold.tree.size(manifold.shape, feasible) == manifold.with_rank(feasible).size
        assert manifold.size_at(rank) == manifold.with_rank(feasible).size
    full = rank_tuple(manifold.full_rank)
    assert manifold.size_at([7 * rank for rank in full]) == manifold.with_rank(manifold.full_rank).size


def smooth_tensor(shape):
    """A tensor with fast and uneven decay, free of symmetry: ``1 / (1 + sum k i_k)``, tilted."""
    grid = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    return 1.0 / (1.0 + sum((k + 1.3) * g for k, g in enumerate(grid))) + 0.1 * np.sin(sum(grid))


@pytest.mark.parametrize("modes", [(0, 1, 2), (0, 2), (1,)], ids=str)
def test_tucker_truncation_is_hosvd(modes):
    dense = smooth_tensor((5, 4, 6))
    for rank in itertools.product(*([2, 3] for _ in modes)):
        try:
            manifold = TuckerManifold(dense.shape, rank, modes)
        except ValueError:
            continue
        want = oracles.multilinear_truncation(dense, modes, rank)
        got = manifold.to_dense(manifold.from_dense(torch.from_numpy(dense))).numpy()
        np.testing.assert_allclose(got, want, atol=1e-12)


def test_fixed_rank_truncation_is_the_svd():
    dense = smooth_tensor((6, 5))
    u, s, vh = np.linalg.svd(dense, full_matrices=False)
    for rank in range(1, 6):
        manifold = FixedRankManifold((6, 5), rank)
        got = manifold.to_dense(manifold.from_dense(torch.from_numpy(dense))).numpy()
        np.testing.assert_allclose(got, u[:, :rank] * s[:rank] @ vh[:rank], atol=1e-12)


@pytest.mark.parametrize("rank", [(2, 2, 2), (3, 3, 2), (2, 4, 3)], ids=str)
def test_tensor_train_truncation_is_as_good_as_tt_svd(rank):
    """Both are quasi-optimal with the same constant; they differ by what tails do to each other."""
    dense = smooth_tensor((4, 5, 4, 3))
    manifold = TensorTrainManifold(dense.shape, rank)
    error = np.linalg.norm(manifold.to_dense(manifold.from_dense(torch.from_numpy(dense))).numpy() - dense)
    reference = np.linalg.norm(oracles.train_truncation(dense, rank) - dense)
    cuts = [oracles.tails(dense, list(range(k + 1)))[r] for k, r in enumerate(rank)]
    assert max(cuts) <= error * (1 + 1e-12)
    assert error <= np.linalg.norm(cuts) * (1 + 1e-12)
    assert error == pytest.approx(reference, rel=0.05)


@each_format
def test_truncation_of_a_sum_is_that_of_the_dense_sum(manifold):
    x = packed(manifold)
    u = 0.05 * manifold.proju(
        x, torch.randn(manifold.size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    )
    dense = manifold.to_dense(x).numpy() + manifold.tangent_to_dense(x, u).numpy()
    truncation = manifold.truncation(x, u)
    for values, rows in zip(truncation.singular_values, rank_modes(manifold), strict=True):
        want = np.linalg.svd(oracles.matricise(dense, rows), compute_uv=False)
        kept = min(len(values), len(want))
        np.testing.assert_allclose(values.numpy()[:kept], want[:kept], atol=1e-12)
    ranks = [values.shape[-1] for values in truncation.singular_values]
    larger, y = truncation.to(ranks)
    np.testing.assert_allclose(larger.to_dense(y).numpy(), dense, atol=1e-12)


@each_format
def test_retraction_agrees_with_the_truncated_sum_to_third_order(manifold):
    x = packed(manifold)
    u = manifold.proju(
        x, torch.randn(manifold.size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    )
    u = (
        u
        / u.norm()
        * min(
            float(values[-1]) for values in (*manifold.singular_values(x), manifold.to_dense(x).norm()[None])
        )
    )

    def gap(t):
        manifold_again, y = manifold.truncation(x, t * u).to(
            manifold.rank if isinstance(manifold.rank, tuple) else [manifold.rank]
        )
        assert manifold_again == manifold
        return (manifold.to_dense(manifold.retr(x, t * u)) - manifold.to_dense(y)).norm().item()

    coarse, fine = gap(0.04), gap(0.02)
    assert fine < 1e-13 or math.log2(coarse / fine) > 2.8


@pytest.mark.parametrize(
    ("shape", "rank", "largest"),
    [((6, 2, 2), (5, 2, 2), (4, 2, 2)), ((3, 3, 3), (4, 3, 3), (3, 3, 3)), ((5, 5, 5), (3, 1, 2), (2, 1, 2))],
)
def test_tucker_rank_limits(shape, rank, largest):
    """``r_i <= min(n_i, product of the others)``."""
    with pytest.raises(
        ValueError, match=rf"largest feasible rank below it is \({', '.join(map(str, largest))}\)"
    ):
        TuckerManifold(shape, rank)
    assert TuckerManifold(shape, largest).rank == largest


@pytest.mark.parametrize(
    ("shape", "rank", "largest"),
    [((2, 3, 4), (3, 4), (2, 4)), ((5, 2, 2), (5, 2), (4, 2)), ((3, 3, 3, 3), (1, 4, 3), (1, 3, 3))],
)
def test_tensor_train_rank_limits(shape, rank, largest):
    """``r_k <= min(r_{k-1} n_k, n_{k+1} r_{k+1})``."""
    with pytest.raises(
        ValueError, match=rf"largest feasible rank below it is \({', '.join(map(str, largest))}\)"
    ):
        TensorTrainManifold(shape, rank)
    assert TensorTrainManifold(shape, largest).rank == largest
    assert TensorTrainManifold(shape, (1, *largest, 1)).rank == largest
