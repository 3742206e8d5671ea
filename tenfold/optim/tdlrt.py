"""The rank-adaptive training of the TDLRT paper."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tenfold.manifolds import TreeManifold
from tenfold.optim.adam import RiemannianAdamW
from tenfold.optim.checked import Group
from tenfold.optim.core_integration import CoreIntegration, Integrator
from tenfold.optim.muon import TangentMuon, spectral_step
from tenfold.optim.rank_policy import RankPolicy
from tenfold.optim.sgd import RiemannianSGD
from tenfold.optim.update import State

__all__ = ["TDLRT", "Integrator", "TDLRTAdamW", "TDLRTMuon"]


class TDLRT(CoreIntegration, RiemannianSGD):
    r"""Geometry-aware, rank-adaptive training in factorized form (TDLRT), with SGD on the core.

    Every ``rank_adaptation.every`` steps the bases are augmented by the gradient (with momentum: by its
    buffer), the core takes its step in the augmented bases, and the result is truncated:

    .. math::

        \hat U_v &= \operatorname{orth}[U_v \mid \nabla_{U_v} L], \qquad
        \tilde C = C \times_v \hat U_v^T U_v \\
        \hat C &= \tilde C - \lambda \nabla_C L(\tilde C \times_v \hat U_v) \\
        (C^+, P_v) &= \text{HOSVD}_\tau(\hat C), \qquad U_v^+ = \hat U_v P_v .

    Before truncation this is ``W - lr P G`` with the orthogonal projection ``P`` on the augmented bases.
    The steps between move the core alone; momentum, a tangent vector as in :class:`RiemannianSGD`, goes on
    gathering the whole Riemannian gradient (in the damped metric), so that the bases move by what all steps
    since the last time have seen, not by one mini-batch. With ``core_steps=k`` the truncation waits until the
    core has taken ``k`` steps in the augmented bases, in which useful directions grow: with the truncation
    in the same step a new direction stays only if a single step makes it larger than the tolerance.
    After ``rank_adaptation.stop`` the bases still move, at the ranks they have.

    In contrast to a Riemannian step, which gives a new direction only its part of second order in the step,
    the augmented core has room for the gradient between new directions, so ranks grow at any step size.

    Parameters
    ----------
    params, lr, momentum, dampening, weight_decay, nesterov, maximize, foreach, stabilize, check_finite
        As for :class:`RiemannianSGD`.
    rank_adaptation : RankPolicy
        How ranks are adapted, and how often (``every``).
    integrator : Integrator or str
        ``"two-pass"`` takes a closure and evaluates it twice in augmented steps; ``"fused"`` evaluates
        the model once and forms the same step from what its modules keep; ``"parallel"`` needs neither.
    model : torch.nn.Module or None
        For ``"fused"``: the network, on which forward hooks are registered until :meth:`close`.
    core_steps : int
        Steps in augmented bases before the truncation, from 1 to ``rank_adaptation.every``. Until
        then the parameters have up to twice their ranks, so let ``rank_adaptation.stop`` come at least
        ``every`` steps before the end. Above 1 it needs a policy without hysteresis, which would compare
        with these ranks.

    Raises
    ------
    ValueError
        If a hyperparameter is out of range, or the model is missing or superfluous.

    Notes
    -----
    Complexity of an augmented step per parameter: QR with ``2 r`` columns of every basis, a core of ranks
    ``2 r``, its SVDs; the steps between cost a few operations per entry of the core, with momentum also a
    few products of ``n x r`` and ``r x r`` per basis. ``"fused"`` keeps input and output gradient of every
    low-rank module until the step and does not work inside a compiled graph; captured gradients take the
    scale of the parameters' (``GradScaler``, clipping of the norm of all).

    References
    ----------
    Zangrando et al., "Geometry-aware training of factorized layers in tensor Tucker format", NeurIPS 2024
    (arXiv 2305.19059).
    """

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        rank_adaptation: RankPolicy,
        integrator: Integrator | str = Integrator.TWO_PASS,
        model: nn.Module | None = None,
        core_steps: int = 1,
        **options: Any,
    ):
        self._integrate_with(integrator, model, core_steps)
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            rank_adaptation=rank_adaptation,
            **options,
        )


class TDLRTAdamW(CoreIntegration, RiemannianAdamW):
    """:class:`TDLRT` with AdamW in place of SGD, its moments those of :class:`RiemannianAdamW`.

    Parameters
    ----------
    params, lr, betas, eps, weight_decay, amsgrad, maximize, foreach, stabilize, check_finite
        As for :class:`RiemannianAdamW`.
    rank_adaptation, integrator, model, core_steps
        As for :class:`TDLRT`.
    """

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        rank_adaptation: RankPolicy,
        integrator: Integrator | str = Integrator.TWO_PASS,
        model: nn.Module | None = None,
        core_steps: int = 1,
        **options: Any,
    ):
        self._integrate_with(integrator, model, core_steps)
        options.setdefault("damping", None)
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, rank_adaptation=rank_adaptation, **options
        )


class TDLRTMuon(CoreIntegration, TangentMuon):
    """:class:`TDLRT` with the steps of :class:`TangentMuon`: all singular values of a core's step are equal.

    New directions, whose singular values begin at zero, grow as fast as the others.

    Parameters
    ----------
    params, lr, momentum, nesterov, weight_decay, betas, eps, maximize, foreach, stabilize, check_finite
        As for :class:`TangentMuon`.
    rank_adaptation, integrator, model, core_steps
        As for :class:`TDLRT`.
    """

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
        rank_adaptation: RankPolicy,
        integrator: Integrator | str = Integrator.TWO_PASS,
        model: nn.Module | None = None,
        core_steps: int = 1,
        **options: Any,
    ):
        self._integrate_with(integrator, model, core_steps)
        options.setdefault("damping", None)
        super().__init__(
            params,
            lr,
            momentum,
            nesterov,
            weight_decay,
            betas,
            eps,
            rank_adaptation=rank_adaptation,
            **options,
        )

    def _core_direction(
        self, group: Group, manifold: TreeManifold, x: torch.Tensor, rgrad: torch.Tensor, state: State
    ) -> tuple[torch.Tensor, State]:
        # Bases wait for their step, so nothing of theirs is orthogonalised.
        d, state = self._with_momentum(group, rgrad, state)
        root = manifold.tree.root
        blocks = [torch.zeros_like(block) for block in manifold.unpack_tensor(d)]
        blocks[root] = spectral_step(manifold.tangent_matrices(d)[root]).reshape(blocks[root].shape)
        direction = manifold.pack_point(*blocks)
        if group["weight_decay"]:
            direction = direction + group["weight_decay"] * manifold.radial(x)
        return direction, state
