"""Stochastic gradient descent on manifolds."""

from __future__ import annotations

from typing import Any

import geoopt
import torch
from torch.optim.sgd import sgd

from tenfold.optim.base import RiemannianOptimizer
from tenfold.optim.checked import Group
from tenfold.optim.hyperparameters import check_number
from tenfold.optim.rank_policy import RankPolicy
from tenfold.optim.update import State
from tenfold.untrusted.values import fraction

__all__ = ["RiemannianSGD"]


class RiemannianSGD(RiemannianOptimizer):
    r"""Riemannian stochastic gradient descent with the API of :class:`torch.optim.SGD`.

    For a parameter ``x`` on a manifold, with Riemannian gradient ``g`` and transported momentum ``b``:

    .. math::

        g &\leftarrow \operatorname{grad} f(x) + \text{weight\_decay} \cdot x \\
        b &\leftarrow \mu b + (1 - \text{dampening}) g \qquad (b = 0 \text{ before the first step}) \\
        d &\leftarrow g + \mu b \text{ if nesterov else } b \\
        x^+ &\leftarrow R_x(-\text{lr} \cdot d), \qquad b \leftarrow T_{x \to x^+} b

    Low-rank parameters change their ranks in the steps in which ``rank_adaptation`` is due: the retraction
    then truncates by tolerance. Parameters on any other geoopt manifold move by that manifold's
    retraction. Plain parameters are moved by ``torch.optim.SGD``'s own code.

    Parameters
    ----------
    params : iterable
        Parameters, named parameters (errors then use the names) or parameter groups.
    lr : float or torch.Tensor
        Learning rate.
    momentum : float
        Momentum factor ``mu``.
    dampening : float
        Dampening of the momentum. On manifolds it acts from the first step on; for plain
        parameters from the second, as in torch.
    weight_decay : float
        L2 penalty on the tensor itself (not on its factors).
    nesterov : bool
        Nesterov momentum; needs momentum and no dampening.
    maximize : bool
        Ascend instead of descend.
    foreach : bool or None
        Stack parameters on equal manifolds and move them in one batch; None means wherever that saves
        time: everywhere but for large parameters on the CPU.
    rank_adaptation : RankPolicy or None
        How ranks are adapted; None keeps them.
    stabilize : int or None
        Project points and momentum back on their manifolds every so many steps. The low-rank
        retractions do not drift and need none.
    check_finite : bool
        Refuse a step with NaN or infinity in it before anything is changed (one
        synchronisation with the device).
    damping : float or None
        None follows the exact geometry. A number (0.01 to 0.1) replaces the steps that keep the ranks by
        matrix products and small Cholesky factors, in a metric damped in the directions of small
        singular values: several times cheaper, first order, and no worse on stiff problems.

    Raises
    ------
    ValueError
        If a hyperparameter is out of range.

    Notes
    -----
    Complexity per low-rank parameter and step: QR of every factor and of every unfolding of the core,
    and mode products with the core; no array larger than the factors. A step that adapts ranks decomposes
    matrices of twice the ranks and synchronises once per parameter.

    References
    ----------
    Bonnabel, "Stochastic gradient descent on Riemannian manifolds", 2013. Zangrando et al., NeurIPS 2024.
    """

    tangent_state = ("momentum_buffer",)
    linear_direction = True

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        rank_adaptation: RankPolicy | None = None,
        stabilize: int | None = None,
        check_finite: bool = True,
        damping: float | None = None,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
            },
            foreach=foreach,
            rank_adaptation=rank_adaptation,
            stabilize=stabilize,
            check_finite=check_finite,
            damping=damping,
        )

    def _check_group(self, group: Group) -> None:
        self._check_lr(group["lr"])
        for name in ("momentum", "weight_decay"):
            check_number(name, group[name])
        fraction("dampening", group["dampening"])
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError(
                "nesterov needs a positive momentum and zero dampening, got "
                f"momentum={group['momentum']}, dampening={group['dampening']}"
            )

    def _direction(
        self, group: Group, manifold: geoopt.Manifold, x: torch.Tensor, rgrad: torch.Tensor, state: State
    ) -> tuple[torch.Tensor, State]:
        mu = group["momentum"]
        if not mu:
            return rgrad, {}
        fresh = 1 - group["dampening"]
        b = rgrad if fresh == 1 else fresh * rgrad
        if "momentum_buffer" in state:
            b = b.add(state["momentum_buffer"], alpha=mu)
        d = rgrad + mu * b if group["nesterov"] else b
        return d, {"momentum_buffer": b}

    def _plain_step(self, group: Group, parameters: list[torch.Tensor]) -> None:
        buffers = [self.state[p].get("momentum_buffer") if group["momentum"] else None for p in parameters]
        sgd(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            buffers,
            has_sparse_grad=False,
            foreach=group["foreach"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )
        if group["momentum"]:
            for p, buffer in zip(parameters, buffers, strict=True):
                self.state[p]["momentum_buffer"] = buffer
