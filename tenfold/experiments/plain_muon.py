"""Muon for dense weights and loose factors: the counterpart of Muon in the tangent space."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from tenfold.optim.muon import spectral_step


class PlainMuon(torch.optim.AdamW):
    r"""Muon on some parameters, each as a matrix of its first mode by all others, and AdamW on the rest.

    .. math::

        b \leftarrow \mu b + g, \qquad
        x \leftarrow (1 - \text{lr} \cdot \text{weight\_decay}) x
            - 0.2 \, \text{lr} \sqrt{\max(m, n)} \operatorname{orth}(g + \mu b)

    as :class:`~tenfold.optim.TangentMuon` does with the blocks of a tangent vector.

    Parameters
    ----------
    matrices, others : iterable of nn.Parameter
        What moves by Muon, with two modes or more, and what by AdamW.
    lr, momentum, weight_decay : float
        As for :class:`~tenfold.optim.TangentMuon`.

    References
    ----------
    Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
    ) -> None:
        groups: list[dict[str, Any]] = [
            {"params": list(matrices), "momentum": momentum},
            {"params": list(others)},
        ]
        super().__init__(groups, lr=lr, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group = self.param_groups[0]
        gradients = [(p, p.grad) for p in group["params"] if p.grad is not None]
        for p, _ in gradients:
            p.grad = None  # AdamW passes over it
        super().step()
        for p, gradient in gradients:
            p.grad = gradient
            state = self.state[p]
            if not state:
                # AdamW wants a number of steps in the state of every parameter that it loads.
                state.update(step=torch.zeros(()), momentum_buffer=torch.zeros_like(gradient))
            state["step"] += 1
            state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
            direction = gradient.add(state["momentum_buffer"], alpha=group["momentum"]).flatten(1)
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.sub_(group["lr"] * spectral_step(direction).reshape(p.shape))
        return loss
