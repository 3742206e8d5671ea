"""Tensors to complete: real ones that come with tensorly, and a synthetic one of known rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

NAMES = ("indian-pines", "kinetic", "synthetic")


@dataclass(frozen=True)
class Problem:
    """A tensor of which some entries are shown.

    Attributes
    ----------
    tensor : torch.Tensor
        The data in float64, divided by the root mean square of the seen entries; zero where unknown.
    seen, held_out : torch.Tensor
        Flat positions of the entries that a method may use, and of those that it is judged by. Entries that
        nobody measured are in neither.
    """

    tensor: torch.Tensor
    seen: torch.Tensor
    held_out: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def mask(self) -> torch.Tensor:
        """True where an entry is seen."""
        return (
            torch.zeros(self.tensor.numel(), dtype=torch.bool).index_fill(0, self.seen, True).view(self.shape)
        )


def load(name: str, fraction: float, seed: int) -> Problem:
    """Show a random fraction of the measured entries."""
    tensor, measured = _read(name)
    known = torch.nonzero(measured.reshape(-1))[:, 0]
    shuffled = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))]
    count = round(fraction * len(known))
    seen, held_out = shuffled[:count].sort().values, shuffled[count:].sort().values
    scale = tensor.reshape(-1)[seen].square().mean().sqrt()
    return Problem(torch.where(measured, tensor / scale, 0.0), seen, held_out)


def _read(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    if name == "synthetic":
        from tenfold.manifolds import TuckerManifold

        manifold = TuckerManifold((60, 50, 40), (5, 4, 3))
        exact = manifold.to_dense(manifold.origin(dtype=torch.float64, seed=1))
        return exact, torch.ones(exact.shape, dtype=torch.bool)
    try:
        from tensorly import datasets
    except ImportError as error:
        raise SystemExit(f"--data {name} comes with tensorly: pip install tensorly") from error
    if name == "indian-pines":
        tensor = torch.from_numpy(np.array(datasets.load_indian_pines().tensor, dtype=np.float64))
        return tensor, torch.ones(tensor.shape, dtype=torch.bool)
    bunch = datasets.load_kinetic()
    tensor = torch.from_numpy(np.array(bunch.tensor, dtype=np.float64))
    return tensor, ~torch.from_numpy(np.array(bunch.missing_values_position, dtype=bool))
