"""Dense formulas in NumPy, written independently of the library: loops, ``einsum`` and LAPACK."""

import itertools
import math

import numpy as np

__all__ = [
    "ht_dense",
    "matricise",
    "multilinear_truncation",
    "tails",
    "tangent_basis",
    "train_dense",
    "train_truncation",
    "tucker_dense",
]


def tucker_dense(core, factors, modes):
    """``W[i...] = sum_a C[a...] prod U_m[i_m, a_m]``, entry by entry.

    The axes of the core are those of ``modes``, then the others in order.
    """
    order = core.ndim
    full = [mode for mode in range(order) if mode not in modes]
    shape = [0] * order
    for factor, mode in zip(factors, modes, strict=True):
        shape[mode] = factor.shape[0]
    for axis, mode in enumerate(full, start=len(modes)):
        shape[mode] = core.shape[axis]
    dense = np.zeros(shape)
    for index in itertools.product(*map(range, shape)):
        entry = core
        for factor, mode in zip(factors, modes, strict=True):
            entry = np.tensordot(factor[index[mode]], entry, axes=(0, 0))
        dense[index] = entry[tuple(index[mode] for mode in full)]
    return dense


def train_dense(cores):
    """``W[i_1 ... i_d] = G_1[i_1] ... G_d[i_d]`` as a product of matrices, entry by entry."""
    cores = (
        [cores[0][None], *cores[1:-1], cores[-1][..., None]] if len(cores) > 1 else [cores[0][None, :, None]]
    )
    shape = [core.shape[1] for core in cores]
    dense = np.zeros(shape)
    for index in itertools.product(*map(range, shape)):
        product = np.eye(1)
        for core, i in zip(cores, index, strict=True):
            product = product @ core[:, i]
        dense[index] = product[0, 0]
    return dense


def ht_dense(factors, order):
    """Hierarchical Tucker with factors from the root down, left before right, as a matrix of bases."""
    remaining = iter(factors)

    def basis(count):
        tensor = next(remaining)
        if count == 1:
            return tensor
        half = (count + 1) // 2
        left, right = basis(half), basis(count - half)
        joined = np.einsum("ia,jb,abc->ijc", left, right, tensor)
        return joined.reshape(-1, tensor.shape[-1])

    root = next(remaining)
    half = (order + 1) // 2
    left, right = basis(half), basis(order - half)
    return left @ root @ right.T


def tangent_basis(dense, x, dim, step=1e-4):
    """Orthonormal basis of the range of the derivative of ``dense`` at ``x``, by central differences.

    Multilinear functions of degree at most 5: two step lengths extrapolated leave an error of ``step**4``.
    """
    columns = []
    for k in range(len(x)):
        unit = np.zeros_like(x)
        unit[k] = step
        near = (dense(x + unit) - dense(x - unit)) / (2 * step)
        far = (dense(x + 2 * unit) - dense(x - 2 * unit)) / (4 * step)
        columns.append(((4 * near - far) / 3).ravel())
    u, s, _ = np.linalg.svd(np.stack(columns, axis=1), full_matrices=False)
    assert s[dim - 1] > 1e-6 * s[0]
    assert len(s) == dim or s[dim] < 1e-9 * s[0]
    return u[:, :dim]


def matricise(dense, rows):
    """Modes ``rows`` against the others, as a matrix."""
    others = [mode for mode in range(dense.ndim) if mode not in rows]
    size = math.prod(dense.shape[mode] for mode in rows)
    return np.transpose(dense, [*rows, *others]).reshape(size, -1)


def tails(dense, rows):
    """``tails[j]``: norm of the singular values of a matricisation from ``j`` on; the last is zero."""
    values = np.linalg.svd(matricise(dense, rows), compute_uv=False)
    return np.sqrt(np.append(np.cumsum(values[::-1] ** 2)[::-1], 0.0))


def multilinear_truncation(dense, modes, ranks):
    """Truncated HOSVD: every unfolding projected on its dominant left singular vectors."""
    result = dense
    for mode, rank in zip(modes, ranks, strict=True):
        u = np.linalg.svd(matricise(dense, [mode]), full_matrices=False)[0][:, :rank]
        result = np.moveaxis(np.tensordot(u @ u.T, result, axes=(1, mode)), 0, mode)
    return result


def train_truncation(dense, ranks):
    """TT-SVD from left to right (Oseledets, 2011)."""
    shape, cores, rest, left = dense.shape, [], dense, 1
    for k, rank in enumerate(ranks):
        u, s, vh = np.linalg.svd(rest.reshape(left * shape[k], -1), full_matrices=False)
        cores.append(u[:, :rank].reshape(left, shape[k], rank))
        rest, left = s[:rank, None] * vh[:rank], rank
    cores.append(rest.reshape(left, shape[-1], 1))
    result = cores[0]
    for core in cores[1:]:
        result = np.tensordot(result, core, axes=(-1, 0))
    return result.reshape(shape)
