"""Adam on manifolds."""

from __future__ import annotations

import math
from enum import Enum
from typing import Any

import geoopt
import torch
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.optimizer import _get_scalar_dtype

from tenfold.manifolds import LowRankManifold
from tenfold.optim.base import RiemannianOptimizer
from tenfold.optim.checked import Group
from tenfold.optim.hyperparameters import check_number
from tenfold.optim.rank_policy import RankPolicy
from tenfold.optim.update import State

__all__ = ["RiemannianAdam", "RiemannianAdamW", "SecondMoment"]


class SecondMoment(str, Enum):
    """What the second moment of a low-rank parameter is."""

    COORDINATE = "coordinate"
    """One number for every isometric coordinate, carried along with the bases."""
    SCALAR = "scalar"
    """The mean over all packed numbers, those that the gauge makes zero included: the step is a multiple of
    the first moment, whatever the bases, and moves the weight by about ``lr * sqrt(size)``."""


class RiemannianAdam(RiemannianOptimizer):
    r"""Riemannian Adam with the API of :class:`torch.optim.Adam`.

    For a low-rank parameter with Riemannian gradient ``g`` in isometric coordinates:

    .. math::

        m &\leftarrow \beta_1 m + (1 - \beta_1) g, \qquad
        s \leftarrow \beta_2 s + (1 - \beta_2) g^2 \\
        d &= P_x \frac{m / (1 - \beta_1^t)}{\sqrt{s / (1 - \beta_2^t)} + \epsilon} \\
        x^+ &= R_x(-\text{lr} \cdot d), \qquad m \leftarrow T_{x \to x^+} m

    with the projection ``P_x`` on the gauge conditions, which an entrywise quotient breaks.
    The square is taken per coordinate or averaged over them. The bases turn continuously with the point, so
    at fixed rank the second moments stay with their coordinates; when ranks change they are carried
    over by :meth:`~tenfold.manifolds.LowRankManifold.transp_squares`.

    Learning rates: as in torch every coordinate moves by about ``lr`` in a step. A weight of ``dim``
    coordinates therefore moves by ``lr * sqrt(dim)`` in the Frobenius norm, which is what the projection of a
    dense Adam step on the tangent space has, so rates known from torch carry over. (geoopt's Adam
    moves every parameter by ``lr`` in that norm.)

    Parameters on other geoopt manifolds move as in geoopt's Adam, plain parameters by torch's own code.

    Parameters
    ----------
    params : iterable
        Parameters, named parameters or parameter groups.
    lr : float or torch.Tensor
        Learning rate.
    betas : tuple of float
        Decay rates of the two moments.
    eps : float
        Added to the denominator.
    weight_decay : float
        L2 penalty on the tensor.
    amsgrad : bool
        Use the largest second moment seen so far.
    maximize : bool
        Ascend instead of descend.
    second_moment : SecondMoment or str
        ``"coordinate"`` or ``"scalar"``, for low-rank parameters.
    foreach, rank_adaptation, stabilize, check_finite, damping
        As for :class:`RiemannianSGD`. Damped steps are the default: with second moments per
        coordinate the exact metric of the step is not worth its price.

    Raises
    ------
    ValueError
        If a hyperparameter is out of range.

    References
    ----------
    Becigneul and Ganea, "Riemannian adaptive optimization methods", ICLR 2019.
    """

    tangent_state: tuple[str, ...] = ("exp_avg",)
    square_state = ("exp_avg_sq", "max_exp_avg_sq")

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        second_moment: SecondMoment | str = SecondMoment.COORDINATE,
        foreach: bool | None = None,
        rank_adaptation: RankPolicy | None = None,
        stabilize: int | None = None,
        check_finite: bool = True,
        damping: float | None = 0.1,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "amsgrad": amsgrad,
                "maximize": maximize,
                "second_moment": SecondMoment(second_moment).value,
            },
            foreach=foreach,
            rank_adaptation=rank_adaptation,
            stabilize=stabilize,
            check_finite=check_finite,
            damping=damping,
        )

    def _check_group(self, group: Group) -> None:
        self._check_lr(group["lr"])
        for name in ("eps", "weight_decay"):
            check_number(name, group[name])
        if not isinstance(group["betas"], (tuple, list)) or len(group["betas"]) != 2:
            raise ValueError(f"betas must be two numbers, got {group['betas']!r}")
        for k, beta in enumerate(group["betas"]):
            check_number(f"betas[{k}]", beta, below=1)
        SecondMoment(group["second_moment"])
        if group["foreach"] and isinstance(group["lr"], torch.Tensor):
            raise ValueError("foreach=True and a tensor lr do not go together, as in torch.optim.Adam")

    def _check_saved_state(self, number: int, parameter: torch.Tensor, saved: State, group: Group) -> None:
        needed = ["step", "exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])]
        missing = [name for name in needed if name not in saved]
        plain = bool(saved) and not isinstance(parameter, geoopt.ManifoldParameter)
        if missing and (plain or len(missing) < len(needed)):
            raise ValueError(f"the state of parameter {number} has no {missing[0]}")
        if not missing and not saved["step"] >= 1:
            raise ValueError(f"the step of parameter {number} must be at least 1, got {saved['step']}")

    def _direction(
        self, group: Group, manifold: geoopt.Manifold, x: torch.Tensor, rgrad: torch.Tensor, state: State
    ) -> tuple[torch.Tensor, State]:
        (beta1, beta2), t = group["betas"], state.get("step", 0) + 1
        square = self._square(group, manifold, x, rgrad)
        if t > 1:
            m = torch.lerp(state["exp_avg"], rgrad, 1 - beta1)
            s = torch.lerp(state["exp_avg_sq"], square, 1 - beta2)
        else:
            m, s = (1 - beta1) * rgrad, (1 - beta2) * square
        new: State = {"step": t, "exp_avg": m, "exp_avg_sq": s}
        if group["amsgrad"]:
            s = new["max_exp_avg_sq"] = torch.maximum(s, state["max_exp_avg_sq"]) if t > 1 else s
        # New tensors, changed in place: passes over memory are most of what a step costs here.
        denominator = s.sqrt().div_(math.sqrt(1 - beta2**t)).add_(group["eps"])
        d = m.div(denominator).div_(1 - beta1**t)
        if isinstance(manifold, LowRankManifold):
            d = manifold.proju(x, d)
        if self.decoupled_decay and group["weight_decay"]:
            d = d + group["weight_decay"] * (
                manifold.radial(x) if isinstance(manifold, LowRankManifold) else manifold.proju(x, x)
            )
        return d, new

    @staticmethod
    def _square(
        group: Group, manifold: geoopt.Manifold, x: torch.Tensor, rgrad: torch.Tensor
    ) -> torch.Tensor:
        if not isinstance(manifold, LowRankManifold):
            return manifold.component_inner(x, rgrad).expand_as(x)
        if group["second_moment"] == SecondMoment.SCALAR:
            return rgrad.square().mean(-1, keepdim=True).expand_as(rgrad)
        return rgrad.square()

    def _plain_step(self, group: Group, parameters: list[torch.Tensor]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p]["step"] = torch.tensor(0.0, dtype=_get_scalar_dtype())
                names = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])]
                for name in names:
                    self.state[p][name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        states = [self.state[p] for p in parameters]
        run = adamw if self.decoupled_decay else adam
        run(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [s["max_exp_avg_sq"] for s in states] if group["amsgrad"] else [],
            [s["step"] for s in states],
            foreach=group["foreach"],
            amsgrad=group["amsgrad"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )


class RiemannianAdamW(RiemannianAdam):
    """Riemannian Adam with decoupled weight decay and the API of :class:`torch.optim.AdamW`.

    The decay moves the tensor by ``-lr * weight_decay * W`` besides the adaptive step.

    Parameters
    ----------
    params, lr, betas, eps
        As for :class:`RiemannianAdam`.
    weight_decay : float
        Rate of the decay of the tensor.
    amsgrad : bool
        As for :class:`RiemannianAdam`.
    **options
        The remaining arguments of :class:`RiemannianAdam`.

    References
    ----------
    Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019.
    """

    decoupled_decay = True

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        **options: Any,
    ):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **options)
