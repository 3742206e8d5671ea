"""What a run is where nothing is given: defaults that train well."""

from __future__ import annotations

from typing import Any

from tenfold.experiments.combinations import choices_of, is_adaptive, moves_on_the_beat

LOW_RANK_DEFAULTS: dict[str, Any] = {"rank": 0.5, "tau": 0.15, "adapt_every": 10, "damping": 0.05}
"""Fields of low-rank runs with a default."""

_BEAT = 3  # where bases move in these steps only
_ADAPTIVE_LR = 0.005  # of the adaptive optimizers, whatever the data
_PHOTOGRAPHS = {"epochs": 20, "batch_size": 128, "lr": 0.1, "weight_decay": 5e-4, "tau": 0.06}
_RECIPES: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 20, "batch_size": 32, "lr": 0.05, "tau": 0.15},
    "mnist": {"epochs": 5, "batch_size": 64, "lr": 0.05, "tau": 0.2},
    "cifar10": _PHOTOGRAPHS,
    "cifar100": _PHOTOGRAPHS,
    "tinyimagenet": _PHOTOGRAPHS,
}


def low_rank_default(field: str, optimizer: str) -> Any:
    """What a field of low-rank runs is where nothing is given and no recipe knows better."""
    if field == "adapt_every" and moves_on_the_beat(optimizer):
        return _BEAT
    return LOW_RANK_DEFAULTS[field]


def recipe_for(data: str, method: str, optimizer: str) -> dict[str, Any]:
    """The fields that train well on a data set; nothing for one that is not known."""
    recipe = dict(_RECIPES.get(data, {}))
    if is_adaptive(optimizer):
        recipe["lr"] = _ADAPTIVE_LR
    if "tau" not in choices_of(method, optimizer):
        recipe.pop("tau", None)
    return recipe
