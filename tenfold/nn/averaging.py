"""Averages of models over training that average tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import swa_utils

from tenfold.manifolds import TreeManifold, is_low_rank, move_
from tenfold.untrusted.tensors import check_tensor

__all__ = ["AveragedModel"]


class AveragedModel(swa_utils.AveragedModel):
    r"""A running or exponential mean of a model's weights, of which low-rank ones are averaged as tensors.

    The factors of a tensor are not unique, so the mean of factors is not that of tensors; the averages of
    :mod:`torch.optim.swa_utils` take it nevertheless. Here

    .. math:: \bar W \leftarrow \mathrm{trunc}_r \left( d \bar W + (1 - d) W \right)

    with the sum formed exactly in the format, truncated to the rank that ``W`` has at the time.

    Parameters
    ----------
    model : torch.nn.Module
        The model to average; it is copied.
    decay : float or None
        ``d`` in [0, 1) of an exponential mean; None means the mean of all updates (SWA).
    device : torch.device, str or None
        Where the average is kept; None means where the model is.
    use_buffers : bool
        Average floating-point buffers too, in the place of copying them.

    Raises
    ------
    ValueError
        If the decay is outside [0, 1).

    Notes
    -----
    In half precision an exponential mean stands still where ``1 - d`` of a difference is below its
    resolution: average a copy in float32, ``AveragedModel(copy.deepcopy(model).float())``.

    Complexity of an update: a QR and an SVD of every unfolding at twice the rank.

    Examples
    --------
    >>> import torch, tenfold
    >>> model = torch.nn.Sequential(tenfold.nn.Linear(8, 8, rank=2), torch.nn.Linear(8, 4))
    >>> average = tenfold.nn.AveragedModel(model, decay=0.9)
    >>> average.update_parameters(model)  # after each step of the optimizer
    >>> average(torch.randn(3, 8)).shape
    torch.Size([3, 4])
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float | None = None,
        device: torch.device | str | None = None,
        use_buffers: bool = False,
    ):
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        super().__init__(model, None if device is None else torch.device(device), use_buffers=use_buffers)
        self.decay = decay

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any) -> None:
        count = state_dict.get(f"{prefix}n_averaged")
        if count is not None:
            numbers = check_tensor(f"{prefix}n_averaged", count, (), like=self.n_averaged)
            if not numbers.is_meta and int(numbers) < 0:
                raise ValueError(f"{prefix}n_averaged must not be negative, got {int(numbers)}")
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the present weights of ``model`` into the average; the first ones are copied.

        Raises
        ------
        TypeError
            If a low-rank parameter is not a tensor tree.
        """
        count = int(self.n_averaged)
        old = 0.0 if count == 0 else count / (count + 1) if self.decay is None else self.decay
        for mean, now in zip(self.module.parameters(), model.parameters(), strict=True):
            here = now.detach().to(mean.device, mean.dtype)
            if not is_low_rank(mean) or not is_low_rank(now):
                mean.lerp_(here, 1.0 - old)
            elif old == 0.0:
                move_(mean, now.manifold, here)
            else:
                manifold = mean.manifold
                if not isinstance(manifold, TreeManifold):
                    raise TypeError(f"only tensor trees can be averaged, got a parameter on {manifold}")
                wide = torch.promote_types(mean.dtype, torch.float32)  # half precision has no QR
                total = manifold.weighted_sum(
                    (old, manifold, mean.to(wide)), (1.0 - old, now.manifold, here.to(wide))
                )
                reached, point = total.to(now.manifold.rank)
                move_(mean, reached, point.to(mean.dtype))
        for buffer, other in zip(self.module.buffers(), model.buffers(), strict=True):
            here = other.detach().to(buffer.device)
            if self.use_buffers and buffer.is_floating_point():
                buffer.lerp_(here.to(buffer.dtype), 1.0 - old)
            else:
                buffer.copy_(here)
        self.n_averaged += 1
