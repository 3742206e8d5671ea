"""``tenfold inspect``."""

from __future__ import annotations

import argparse

import torch

from tenfold.cli.weights_file import dense_layers, read_weights
from tenfold.nn import Format
from tenfold.nn.choice import Decomposition
from tenfold.nn.sites import counterpart, find_sites

_MOST_RANKS = 64  # of a tensor: no more modes than torch has axes
_HEAD = ("weight", "shape", "unfolding", "condition", "50%", "90%", "99%", "rank", "saved")


def inspect_command(options: argparse.Namespace) -> int:
    """Print the spectra of the weights in a file, and the ranks that a tolerance suggests.

    One row for each unfolding that has a rank in the format: its condition number, how many singular
    values hold 50, 90 and 99 % of the squared norm, and the rank at the tolerance.

    Parameters
    ----------
    options : argparse.Namespace
        As :func:`tenfold.cli.arguments.parse` gives it.

    Returns
    -------
    int
        The exit code.

    Raises
    ------
    ValueError, OSError
        A mistake of the user, in one line.
    """
    state, form = read_weights(options.file), Format(options.format)
    rows: list[tuple[str, ...]] = [_HEAD]
    for site in find_sites(dense_layers(state)):
        rows += _spectra(site.name, site.module, form, options.tol)
    for name, rank in state.items():
        packed = name.removesuffix("_rank")
        if packed != name and packed in state and rank.ndim == 1 and len(rank) <= _MOST_RANKS:
            ranks = "x".join(map(str, rank.tolist()))
            rows.append((packed, f"packed, {state[packed].numel():,}", "", "", "", "", "", ranks, ""))
    if len(rows) == 1:
        raise ValueError(f"{options.file} holds no weight of a linear layer or a convolution")
    widths = [max(len(row[k]) for row in rows) for k in range(len(_HEAD))]
    for row in rows:
        left = [f"{cell:<{width}}" for cell, width in zip(row[:3], widths[:3], strict=True)]
        right = [f"{cell:>{width}}" for cell, width in zip(row[3:], widths[3:], strict=True)]
        print("  ".join([*left, *right]).rstrip())
    print(f"rank: at a relative error of {options.tol:g}; saved: share of the numbers, at these ranks")
    return 0


def _spectra(name: str, module: torch.nn.Module, format: Format, tol: float) -> list[tuple[str, ...]]:
    weight = module.get_parameter("weight").detach()
    shape = "x".join(map(str, weight.shape))
    if weight.dtype not in (torch.float32, torch.float64):
        weight = weight.float()
    if not torch.isfinite(weight).all():
        return [(name, shape, "NaN or infinity", "", "", "", "", "", "")]
    cls, options = counterpart(type(module), format)
    layer = cls(**{**cls._arguments(module), **options, "rank": 1, "device": "meta"})
    decomposition = Decomposition.of(layer.manifold, layer.layout.to_tensor(weight), weight.numel())
    ranks = decomposition.ranks(tol)
    saved = f"{1 - decomposition.stored(ranks) / weight.numel():.1%}"
    rows = []
    tree, sizes = layer.manifold.tree, layer.manifold.shape
    groups = zip(tree.ranks, decomposition.truncation.singular_values, ranks, strict=True)
    for number, (group, values, rank) in enumerate(groups):
        below = "x".join(str(sizes[mode]) for mode in tree.modes_below(group[0]))
        squares = values.double().square().cumsum(0)
        energy = [str(int((squares < share * squares[-1]).sum()) + 1) for share in (0.5, 0.9, 0.99)]
        condition = f"{(values[0] / values[-1]).item():.2g}" if values[-1] > 0 else "inf"
        first = (name, shape) if number == 0 else ("", "")
        last = saved if number == 0 else ""
        rows.append((*first, f"{below} | rest", condition, *energy, str(rank), last))
    return rows
