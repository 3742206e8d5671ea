"""Spectral steps in the tangent space."""

from __future__ import annotations

import math
from typing import Any

import geoopt
import torch

from tenfold.linalg import orthogonalize
from tenfold.manifolds import LowRankManifold
from tenfold.optim.adam import RiemannianAdamW, SecondMoment
from tenfold.optim.base import RiemannianOptimizer
from tenfold.optim.checked import Group
from tenfold.optim.hyperparameters import check_number
from tenfold.optim.rank_policy import RankPolicy
from tenfold.optim.update import State

__all__ = ["TangentMuon"]


def spectral_step(matrix: torch.Tensor) -> torch.Tensor:
    """``0.2 sqrt(max(m, n)) orth(matrix)``, of a root mean square of about 0.2; shape ``(*batch, m, n)``."""
    return 0.2 * math.sqrt(max(matrix.shape[-2:])) * orthogonalize(matrix)


class TangentMuon(RiemannianAdamW):
    r"""Muon in the tangent space of a low-rank manifold, AdamW for everything else.

    A tangent vector in isometric coordinates consists of a change ``C`` of the core and of one change
    ``D_v`` for every basis; each is the matrix of a term of the tangent tensor, with the same singular
    values (:meth:`~tenfold.manifolds.LowRankManifold.tangent_matrices`). With the Riemannian gradient ``g``:

    .. math::

        b &\leftarrow \mu b + g, \qquad d = g + \mu b \text{ if nesterov else } b \\
        o_v &= 0.2 \sqrt{\max(m_v, n_v)} \operatorname{orth}(d_v) \quad
            \text{for every block } d_v \in R^{m_v \times n_v} \\
        x^+ &= R_x(-\text{lr} (o + \text{weight\_decay} \cdot x)), \qquad b \leftarrow T_{x \to x^+} b

    ``orth`` brings all singular values of a block near to one (:func:`~tenfold.linalg.orthogonalize`): the
    direction of steepest descent if a tangent vector is as long as the largest singular value of its terms.
    It turns with the bases, so that the trajectory does not depend on the gauge, and keeps the column
    space of ``D_v``, hence the gauge conditions.

    Learning rates: the factor gives every block a root mean square of about 0.2, as in torch's
    ``Muon(adjust_lr_fn="match_rms_adamw")``; rates known from AdamW carry over, and one rate serves all
    parameters.

    Parameters on other geoopt manifolds and plain parameters move as in :class:`RiemannianAdamW`, with
    ``betas`` and ``eps``. Schedulers that cycle momentum (``OneCycleLR``) cycle ``mu``.

    Parameters
    ----------
    params : iterable
        Parameters, named parameters or parameter groups.
    lr : float or torch.Tensor
        Learning rate.
    momentum : float
        Momentum factor ``mu`` of low-rank parameters.
    nesterov : bool
        Look ahead along the momentum.
    weight_decay : float
        Rate of the decay of the tensor, decoupled.
    betas, eps
        As for :class:`RiemannianAdamW`, for parameters that are not low-rank.
    maximize : bool
        Ascend instead of descend.
    foreach, rank_adaptation, stabilize, check_finite, damping
        As for :class:`RiemannianAdam`.

    Raises
    ------
    ValueError
        If a hyperparameter is out of range.

    Notes
    -----
    Complexity per step beside the geometry: that of :func:`~tenfold.linalg.orthogonalize` for each block.

    References
    ----------
    Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024. Liu et al., "Muon is
    scalable for LLM training", 2025, for the learning rates.
    """

    tangent_state = ("exp_avg", "momentum_buffer")

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-3,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        rank_adaptation: RankPolicy | None = None,
        stabilize: int | None = None,
        check_finite: bool = True,
        damping: float | None = 0.1,
    ):
        self._betas = betas
        RiemannianOptimizer.__init__(
            self,
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "nesterov": nesterov,
                "weight_decay": weight_decay,
                "eps": eps,
                "amsgrad": False,
                "maximize": maximize,
                "second_moment": SecondMoment.COORDINATE.value,
            },
            foreach=foreach,
            rank_adaptation=rank_adaptation,
            stabilize=stabilize,
            check_finite=check_finite,
            damping=damping,
        )

    def __getstate__(self) -> dict[str, Any]:
        """torch keeps groups and state alone in copies."""
        return {**super().__getstate__(), "_betas": self._betas}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        # Not among the defaults, where torch's schedulers would take them for the momentum to cycle.
        super().add_param_group({"betas": self._betas, **param_group})

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        check_number("momentum", group["momentum"], below=1)

    def _direction(
        self, group: Group, manifold: geoopt.Manifold, x: torch.Tensor, rgrad: torch.Tensor, state: State
    ) -> tuple[torch.Tensor, State]:
        if not isinstance(manifold, LowRankManifold):
            return super()._direction(group, manifold, x, rgrad, state)
        d, state = self._with_momentum(group, rgrad, state)
        # Rounding is all that transport leaves in a square basis, and would be orthogonalised with the rest.
        return manifold.proju(x, self._spectral(group, manifold, x, d)), state

    def _tangent_direction(
        self,
        group: Group,
        manifold: LowRankManifold,
        x: torch.Tensor,
        grad: torch.Tensor,
        decay: float,
        frame: Any,
        state: State,
    ) -> tuple[torch.Tensor, State]:
        if group["damping"] is None:
            return super()._tangent_direction(group, manifold, x, grad, decay, frame, state)
        # One projection, of what the step is made from. With it the momentum loses what it has of that:
        # to first order in the step what its own projection would take.
        ahead, state = self._with_momentum(group, manifold.ungauged_gradient(x, grad, frame), state)
        d = manifold.proju(x, ahead)
        share = 1 + group["momentum"] if group["nesterov"] else 1
        b = state["momentum_buffer"]
        return self._spectral(group, manifold, x, d), {"momentum_buffer": b + (d - ahead) / share}

    @staticmethod
    def _spectral(group: Group, manifold: LowRankManifold, x: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        """The step along a tangent vector, whose gauge it keeps."""
        blocks = zip(manifold.tangent_matrices(d), manifold.factor_shapes, strict=True)
        o = [spectral_step(block).reshape(*d.shape[:-1], *shape) for block, shape in blocks]
        direction = manifold.pack_point(*o)
        if group["weight_decay"]:
            direction = direction + group["weight_decay"] * manifold.radial(x)
        return direction

    def _with_momentum(self, group: Group, rgrad: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        mu = group["momentum"]
        b = rgrad
        if "momentum_buffer" in state:
            b = b.add(state["momentum_buffer"], alpha=mu)
        return (rgrad + mu * b if group["nesterov"] else b), {"momentum_buffer": b}
