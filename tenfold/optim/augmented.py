"""Parameters in augmented bases, and what modules have captured of the gradients there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import geoopt
import torch

from tenfold.manifolds import TreeManifold
from tenfold.manifolds.tree_calculus import Frame
from tenfold.optim.agreement import agreed_mean
from tenfold.optim.capture import Capture

__all__ = ["Augmented", "captured_gradients"]


@dataclass
class Augmented:
    """A parameter in augmented bases, whose core has its gradient there as soon as it is known.

    Attributes
    ----------
    parameter : geoopt.ManifoldParameter
        The parameter, still as it was.
    frame : Frame
        Of the parameter.
    rgrad : torch.Tensor
        Its Riemannian gradient, packed.
    manifold : TreeManifold
        That of the augmented bases.
    point : torch.Tensor
        The tensor of the parameter in these, packed.
    core_grad : torch.Tensor or None
        Gradient of the core of ``point``.
    """

    parameter: geoopt.ManifoldParameter
    frame: Frame
    rgrad: torch.Tensor
    manifold: TreeManifold
    point: torch.Tensor
    core_grad: torch.Tensor | None = None


def captured_gradients(
    wide: list[Augmented], capture: Capture, name: Callable[[torch.Tensor], str]
) -> list[torch.Tensor]:
    """Gradients of the augmented cores, of which each process has captured its own part of the batch.

    Parameters that a process has not called count as zero there, if another process has called them.

    Parameters
    ----------
    wide : list of Augmented
        The parameters, the same in all processes.
    capture : Capture
        What the modules have kept.
    name : callable
        Names a parameter in the error.

    Returns
    -------
    list of torch.Tensor
        In the shapes of the cores, at the scale that the gradients of the parameters have by now.

    Raises
    ------
    ValueError
        If nothing was captured for a parameter in any process.
    """
    own: list[torch.Tensor] = []
    here: list[bool] = []
    for item in wide:
        grad = capture.core_gradient(item.parameter, item.manifold, item.point)
        core = item.manifold.unpack_tensor(item.point)[item.manifold.tree.root]
        own.append(torch.zeros_like(core) if grad is None else grad)
        here.append(grad is not None)
    members = [item.parameter for item in wide]
    known = [core.new_ones(()) if mine else core.new_zeros(()) for core, mine in zip(own, here, strict=True)]
    means = agreed_mean([*members, *members], [*own, *known])
    for p, mine, anywhere in zip(members, here, means[len(wide) :], strict=True):
        if not mine and not anywhere:  # no look at the device where it is known
            raise ValueError(f"nothing was captured for {name(p)}: is it part of the model?")
    return _rescaled(wide, means[: len(wide)])


def _rescaled(wide: list[Augmented], captured: list[torch.Tensor]) -> list[torch.Tensor]:
    """Captured gradients at the scale that those of the parameters have by now: unscaled, or clipped.

    In the bases that were there before, the two are the same but for one factor for all parameters. Where all
    of that vanishes beside the rest, the factor cannot be told and is one.
    """
    if not wide:
        return captured
    sums = torch.zeros(3, dtype=torch.float64)
    for item, grad in zip(wide, captured, strict=True):
        p, home = item.parameter, item.parameter.manifold
        known = home.unpack_tensor(p.grad)[home.tree.root].double()
        seen = item.manifold.carry_core(item.point, p.detach(), grad, home).double()
        sums = sums.to(p.device) + torch.stack(
            [(known * seen).sum(), seen.square().sum(), grad.double().square().sum()]
        )
    product, square, whole = sums.unbind()
    visible = square > (1e3 * torch.finfo(captured[0].dtype).eps) ** 2 * whole
    scale = torch.where(visible, product / square, 1.0)
    return [scale.to(grad) * grad for grad in captured]
