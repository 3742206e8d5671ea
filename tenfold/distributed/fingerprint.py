"""Short numbers that differ where tensors differ in a single bit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

__all__ = ["fingerprint"]

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ODD = 0x9E3779B97F4A7C15 - 2**64  # the golden ratio in 64 bits: neighbouring places get unlike weights


def fingerprint(ranks: Sequence[int], tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """A 64-bit sum over the bits of some tensors and over some ranks.

    Each number enters with a weight of its own, so that exchanged entries are noticed; a change of one entry
    always changes the sum. It guards against errors, not against an adversary.

    Parameters
    ----------
    ranks : sequence of int
        Numbers on the host.
    tensors : iterable of torch.Tensor
        Real tensors on one device.

    Returns
    -------
    torch.Tensor
        int64, zero-dimensional, on the tensors' device; no synchronisation with it.

    Notes
    -----
    Complexity: one pass over the tensors, and an array of 64-bit integers of the size of the largest.
    """
    total: torch.Tensor | None = None
    place = 0
    for tensor in tensors:
        bits = tensor.detach().contiguous().reshape(-1)
        bits = bits.view(_INTEGERS[bits.element_size()]).to(torch.int64)
        weights = torch.arange(place, place + len(bits), device=bits.device) * _ODD | 1
        place += len(bits)
        part = (bits * weights).sum() + len(bits)
        total = part if total is None else total * 31 + part
    if total is None:
        total = torch.zeros((), dtype=torch.int64)
    for rank in ranks:
        total = total * 1_000_003 + rank
    return total
