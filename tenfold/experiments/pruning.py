"""Dense networks of which a part of the weights is kept: the masks of SNIP, GraSP and iterative magnitude.

The number of kept weights follows from the compression alone, so parameter counts are those of the factored
methods at the same compression. All pruned layers compete with each other.

- ``prune-snip`` keeps the weights with the largest ``|w · dL/dw|`` at the start (Lee et al., ICLR 2019).
- ``prune-grasp`` removes those with the largest ``-w · (H g)`` at the start, with the Hessian ``H`` and the
  gradient ``g`` of the loss (Wang et al., ICLR 2020); logits are divided by 200 as there.
- ``prune-magnitude`` removes the smallest ``|w|`` in ten rounds of equal proportion over the first half of
  the steps, and trains on after each (Han et al., NeurIPS 2015): iterative magnitude pruning within the steps
  of one run, without rewinding.
- ``prune-imp`` rewinds all other weights after each round (:mod:`tenfold.experiments.rewinding`).

The masks of the first two come from ten training images of every class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from tenfold.experiments.batches import epoch_seed
from tenfold.experiments.config import TrainConfig
from tenfold.experiments.data import DataSet
from tenfold.experiments.rounds import add_early_values

_IMAGES_PER_CLASS = 10
_GRASP_TEMPERATURE = 200.0
_MOST_AT_A_TIME = 250  # images of a score, as memory goes: GraSP keeps the graph of the gradient
_ROUNDS = 10
_SCORED = ("prune-snip", "prune-grasp")


def pruned_layers(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers that have a mask, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and hasattr(module, "weight_mask")
    }


def prune_at_start(model: nn.Module, config: TrainConfig, names: Sequence[str], data: DataSet) -> None:
    """Give the named layers their masks: all that SNIP and GraSP need, full ones for the others."""
    layers = {name: model.get_submodule(name) for name in names}
    scores = _scores(model, config, layers, data) if config.method in _SCORED else {}
    for layer in layers.values():
        prune.identity(layer, "weight")
    if config.method == "prune-imp":
        add_early_values(model)
    assert config.compression is not None  # a pruning configuration always has one
    if scores:
        _keep(list(layers.values()), scores, 1 - config.compression)


def prune_on_schedule(model: nn.Module, config: TrainConfig, step: int, total_steps: int) -> bool:
    """Do the round of magnitude pruning that is due after `step` of `total_steps` steps, if one is.

    What is left after round k of K is the fraction ``(1 - compression) ** (k / K)``. It depends on weights
    and step only, so that a resumed run goes on as it would have.

    Returns
    -------
    bool
        Whether masks have changed.
    """
    if config.method != "prune-magnitude":
        return False
    last = max(1, total_steps // 2)
    due = [k for k in range(1, _ROUNDS + 1) if max(1, last * k // _ROUNDS) == step]
    if not due:
        return False
    keep_largest(model, config, due[-1] / _ROUNDS)
    return True


def keep_largest(model: nn.Module, config: TrainConfig, share: float) -> None:
    """Shrink the masks to the fraction ``(1 - compression) ** share`` of all weights, the largest ones."""
    assert config.compression is not None  # a pruning configuration always has one
    layers = list(pruned_layers(model).values())
    scores = {layer: layer.get_parameter("weight_orig").detach().abs() for layer in layers}
    _keep(layers, scores, (1 - config.compression) ** share)


def _keep(layers: Sequence[nn.Module], scores: Mapping[Any, Tensor], fraction: float) -> None:
    """Shrink the masks to the weights with the largest scores, `fraction` of all."""
    masks = [layer.get_buffer("weight_mask") for layer in layers]
    flat = torch.cat(
        [
            scores[layer].masked_fill(mask == 0, -1.0).flatten()
            for layer, mask in zip(layers, masks, strict=True)
        ]
    )
    kept = torch.zeros_like(flat)
    kept[flat.topk(max(1, round(fraction * flat.numel()))).indices] = 1.0
    for mask, part in zip(masks, kept.split([mask.numel() for mask in masks]), strict=True):
        mask.copy_(part.reshape(mask.shape))


def _scores(
    model: nn.Module, config: TrainConfig, layers: dict[str, nn.Module], data: DataSet
) -> dict[nn.Module, Tensor]:
    """Scores of the weights at the start, none negative, the least important ones lowest."""
    images, labels = _sample(data, config.seed)
    parts = -(-len(labels) // _MOST_AT_A_TIME)
    samples = [(images[i::parts], labels[i::parts]) for i in range(parts)]  # each has images of all classes
    weights = [layer.get_parameter("weight") for layer in layers.values()]
    temperature = 1.0 if config.method == "prune-snip" else _GRASP_TEMPERATURE

    def gradients(sample: tuple[Tensor, Tensor], create_graph: bool) -> tuple[Tensor, ...]:
        loss = nn.functional.cross_entropy(model(sample[0]) / temperature, sample[1])
        part = loss * (len(sample[1]) / len(labels))
        return torch.autograd.grad(part, weights, create_graph=create_graph)

    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = _sum(gradients(sample, False) for sample in samples)
    if config.method == "prune-snip":
        scores = [(w * g).abs() for w, g in zip(weights, found, strict=True)]
    else:
        curved = _sum(
            torch.autograd.grad(gradients(sample, True), weights, grad_outputs=found) for sample in samples
        )  # H g
        raised = [w * hg for w, hg in zip(weights, curved, strict=True)]
        least = min(score.min().item() for score in raised)
        scores = [score - least for score in raised]
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])  # running statistics
    return {layer: score.detach() for layer, score in zip(layers.values(), scores, strict=True)}


def _sum(parts: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.stack(same).sum(0) for same in zip(*parts, strict=True)]


def _sample(data: DataSet, seed: int) -> tuple[Tensor, Tensor]:
    """Ten training images of every class, on the CPU, where networks are built."""
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(epoch_seed(seed, 0)))
    labels = data.train.labels.cpu()[order]
    chosen = torch.cat([order[labels == k][:_IMAGES_PER_CLASS] for k in range(data.num_classes)])
    images = data.train.images[chosen.to(data.train.images.device)].cpu()
    return data.normalise(images), data.train.labels.cpu()[chosen]
