"""Which values the fields of a training run may have, each by itself and together."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tenfold.experiments.combinations import (
    METHODS,
    OPTIMIZERS,
    choices_of,
    is_pruned,
    moves_on_the_beat,
    optimizers_of,
)
from tenfold.experiments.given_ranks import parse_ranks
from tenfold.experiments.recipes import LOW_RANK_DEFAULTS
from tenfold.untrusted.values import LARGEST, brief

if TYPE_CHECKING:
    from tenfold.experiments.config import TrainConfig

DATA_SETS = ("digits", "mnist", "cifar10", "cifar100", "tinyimagenet")
MODELS = ("lenet5", "vgg-light", "vgg-small", "vgg16", "alexnet", "resnet18")
SCHEDULES = ("one-cycle", "cosine", "constant")
ON_NAN = ("raise", "skip", "rollback")

OF_DECISIONS = ("adapt_start", "min_rank", "oversampling")
"""Whole numbers, at least 1, that decisions on ranks go by, None elsewhere."""
OF_SOME_METHODS = (
    *LOW_RANK_DEFAULTS,
    *("ranks", "compression", "start_compression", "decay"),
    *OF_DECISIONS,
)
"""Fields that only some methods have, None elsewhere."""
SWITCHES = ("factorize_all", "per_layer")
"""Fields that only some methods have, False elsewhere."""

_LARGEST = sys.float_info.max


def check_types(config: TrainConfig) -> None:
    """Refuse names that are no strings and switches that are neither True nor False.

    Raises
    ------
    TypeError
        The message names the field.
    """
    for name in ("data", "model", "method", "optimizer", "schedule", "device"):
        if not isinstance(getattr(config, name), str):
            raise TypeError(f"{name} must be a string, not {brief(getattr(config, name))}")
    for name in (*SWITCHES, "amp"):
        if not isinstance(getattr(config, name), bool):
            raise TypeError(f"{name} must be True or False, not {brief(getattr(config, name))}")
    for name in ("data_dir", "ranks"):
        if getattr(config, name) is not None and not isinstance(getattr(config, name), str):
            raise TypeError(f"{name} must be a string or None, not {brief(getattr(config, name))}")


def check_combination(config: TrainConfig) -> None:
    """Refuse unknown names, an optimizer that does not go with the method, and fields without effect.

    Raises
    ------
    ValueError
        The message names the field.
    """
    for name, allowed in (
        ("data", DATA_SETS),
        ("model", MODELS),
        ("method", METHODS),
        ("optimizer", OPTIMIZERS),
        ("schedule", SCHEDULES),
        ("on_nan", ON_NAN),
    ):
        if getattr(config, name) not in allowed:
            raise ValueError(
                f"{name} must be one of {', '.join(allowed)}, not {brief(getattr(config, name))}"
            )
    if config.data == "digits" and config.data_dir is not None:
        raise ValueError("data_dir has no effect on the data set 'digits', which comes with scikit-learn")
    method, optimizer = config.method, config.optimizer
    if optimizer not in optimizers_of(method):
        raise ValueError(
            f"optimizer must be one of {', '.join(optimizers_of(method))} for the method "
            f"{method!r}, not {optimizer!r}"
        )
    given = [name for name in OF_SOME_METHODS if getattr(config, name) is not None]
    given += [name for name in SWITCHES if getattr(config, name)]
    by_method = frozenset[str]().union(*(choices_of(method, o) for o in optimizers_of(method)))
    ignored = [name for name in given if name not in by_method]
    if ignored:
        raise ValueError(f"{', '.join(ignored)} has no effect on the method {method!r}")
    ignored = [name for name in given if name not in choices_of(method, optimizer)]
    if ignored:
        raise ValueError(f"{', '.join(ignored)} has no effect on the optimizer {optimizer!r}")
    sizes = [name for name in ("rank", "ranks", "compression") if getattr(config, name) is not None]
    if len(sizes) > 1:
        raise ValueError(f"{' and '.join(sizes)} both say how large the factors are: give one of them")
    if config.per_layer and config.compression is None:
        raise ValueError("per_layer needs a compression for every layer to start at")


def check_values(config: TrainConfig) -> None:
    """Refuse numbers out of their range, of a run in which defaults are filled in.

    Raises
    ------
    ValueError
        A number is out of its range. The message names the field.
    TypeError
        A whole number is none.
    """
    _check_sizes(config)
    _check_adaptation(config)
    for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
        _check_integer(name, getattr(config, name), least)
    if config.checkpoint_every is not None:
        _check_integer("checkpoint_every", config.checkpoint_every, 1)
    for name, ok, wanted in (
        ("lr", _is_number(config.lr) and config.lr > 0, "a positive number"),
        ("momentum", _is_number(config.momentum) and 0 <= config.momentum < 1, "a number in [0, 1)"),
        (
            "weight_decay",
            _is_number(config.weight_decay) and config.weight_decay >= 0,
            "a number, at least 0",
        ),
    ):
        if not ok:
            raise ValueError(f"{name} must be {wanted}, not {brief(getattr(config, name))}")


def _check_sizes(config: TrainConfig) -> None:
    if is_pruned(config.method) and config.compression is None:
        raise ValueError(f"compression is needed by the method {config.method!r}: a number in [0, 1)")
    rank = config.rank
    whole = isinstance(rank, int) and not isinstance(rank, bool) and 1 <= rank <= LARGEST
    if rank is not None and not whole and not (isinstance(rank, float) and 0 < rank <= 1):
        raise ValueError(
            f"rank must be a fraction in (0, 1] or a whole number of at least 1, not {brief(rank)}"
        )
    if config.ranks is not None:
        parse_ranks(config.ranks)
    for name in ("tau", "compression"):
        value = getattr(config, name)
        if value is not None and not (_is_number(value) and 0 <= value < 1):
            raise ValueError(f"{name} must be a number in [0, 1), not {brief(value)}")
    if config.compression == 0 and config.method == "tucker" and config.tau is None and config.adapt_every:
        raise ValueError("compression must be above 0 for the method 'tucker', whose ranks share a budget")
    start, end = config.start_compression, config.compression
    if start is None:
        return
    if end is None or config.tau is not None:
        raise ValueError("start_compression needs a compression to fall to, and no tau")
    if not (_is_number(start) and 0 < start <= end):
        raise ValueError(
            f"start_compression must be a number in (0, compression] = (0, {end:g}], not {brief(start)}"
        )
    if not config.adapt_every:
        raise ValueError("start_compression needs adapt_every to be at least 1, so that ranks can fall")


def _check_adaptation(config: TrainConfig) -> None:
    if config.adapt_every is not None:
        _check_integer("adapt_every", config.adapt_every, 0)
        if moves_on_the_beat(config.optimizer) and config.adapt_every == 0:
            raise ValueError(
                f"adapt_every must be at least 1 for the optimizer {config.optimizer!r}, which moves bases "
                "in these steps only"
            )
    for name in OF_DECISIONS:
        if getattr(config, name) is not None:
            _check_integer(name, getattr(config, name), 1)
            if not config.adapt_every:
                raise ValueError(f"{name} has no effect where adapt_every=0 keeps the ranks for good")
    if config.damping is not None and not (_is_number(config.damping) and config.damping >= 0):
        raise ValueError(f"damping must be a number, at least 0, not {brief(config.damping)}")
    if config.decay is not None and not (_is_number(config.decay) and config.decay >= 1):
        raise ValueError(f"decay must be a number, at least 1, not {brief(config.decay)}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _check_integer(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {brief(value)}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {brief(value)}")
    if value > LARGEST:
        raise ValueError(f"{name} must be below 2^63")
