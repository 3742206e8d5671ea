"""Hugging Face ``Trainer``: an optimizer from its arguments, and ranks in its logs."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback, TrainingArguments

from tenfold.integrations.scalars import rank_scalars
from tenfold.nn import low_rank_parameters
from tenfold.optim import RankPolicy, RiemannianAdamW

__all__ = ["RankCallback", "riemannian_adamw"]


def riemannian_adamw(
    model: nn.Module, args: TrainingArguments, *, rank_adaptation: RankPolicy | None = None, **options: Any
) -> RiemannianAdamW:
    """The optimizer that a ``Trainer`` would make for these arguments, on manifolds.

    Pass it on: ``Trainer(model, args, optimizers=(riemannian_adamw(model, args), None), ...)``; the trainer
    makes the learning-rate schedule itself.

    Parameters
    ----------
    model : torch.nn.Module
        The model; parameters without gradients are left out.
    args : transformers.TrainingArguments
        Gives learning rate, betas, epsilon and weight decay. The decay is for low-rank parameters and
        for plain ones with at least two dimensions (no biases, no normalisation).
    rank_adaptation : RankPolicy or None
        How ranks are adapted.
    **options
        Further arguments of :class:`~tenfold.optim.RiemannianAdamW`.

    Notes
    -----
    ``Trainer`` clips the norm of the raw gradients at ``args.max_grad_norm``, which for low-rank parameters
    depends on the bases; ``max_grad_norm=0`` turns that off.
    """
    low_rank = {id(parameter) for _, parameter in low_rank_parameters(model)}
    decayed: list[tuple[str, nn.Parameter]] = []
    plain: list[tuple[str, nn.Parameter]] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 or id(parameter) in low_rank else plain).append((name, parameter))
    groups = [
        {"params": decayed, "weight_decay": args.weight_decay},
        {"params": plain, "weight_decay": 0.0, "rank_adaptation": None},
    ]
    return RiemannianAdamW(
        [group for group in groups if group["params"]],
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        rank_adaptation=rank_adaptation,
        **options,
    )


class RankCallback(TrainerCallback):
    """Adds :func:`~tenfold.integrations.rank_scalars` to the log history and to TensorBoard.

    Parameters
    ----------
    folder : str or None
        Folder of the TensorBoard events; None writes to the log history only.
    """

    def __init__(self, folder: str | None = None):
        self.folder = folder
        self._writer: SummaryWriter | None = None

    def on_log(
        self, args: TrainingArguments, state: Any, control: Any, *, model: nn.Module, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        scalars = rank_scalars(model)
        if state.log_history:
            state.log_history[-1].update(scalars)
        if self.folder is not None:
            self._writer = self._writer or SummaryWriter(self.folder)
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, state.global_step)

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
