"""What a training run is: every choice that decides its result, validated, in one dataclass."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from tenfold.experiments.combinations import (
    METHODS,
    OPTIMIZERS,
    choices_of,
    dense_counterpart,
    is_pruned,
    moves_on_the_beat,
    optimizers_of,
)
from tenfold.experiments.recipes import LOW_RANK_DEFAULTS, low_rank_default, recipe_for
from tenfold.untrusted.values import LARGEST, brief

DATA_SETS = ("digits", "mnist", "cifar10", "cifar100", "tinyimagenet")
MODELS = ("lenet5", "vgg-light", "vgg-small", "vgg16", "alexnet", "resnet18")
SCHEDULES = ("one-cycle", "cosine", "constant")
ON_NAN = ("raise", "skip", "rollback")

PLACE_FIELDS = ("data_dir", "device", "checkpoint_every")
"""Where a run takes place and is saved, not what it computes; a resumed run may change these alone."""

_OF_SOME_METHODS = (
    *LOW_RANK_DEFAULTS,
    *("compression", "start_compression", "decay", "adapt_start", "oversampling"),
)
_SWITCHES = ("factorize_all", "per_layer")  # of some methods, too
_LARGEST = sys.float_info.max
# Fields that runs of earlier versions do not have, with what they did.
_ADDED_LATER: dict[str, Any] = {
    "optimizer": "sgd",
    "compression": None,
    "start_compression": None,
    "per_layer": False,
    "decay": None,
    "adapt_start": None,
    "oversampling": None,
    "on_nan": "raise",
    "checkpoint_every": None,
}


@dataclass(frozen=True)
class TrainConfig:
    """One training run. :meth:`recipe` fills in defaults that train well for a data set.

    Parameters
    ----------
    data : {"digits", "mnist", "cifar10", "cifar100", "tinyimagenet"}
        Data set; all but ``"digits"`` are read from `data_dir`.
    model : {"lenet5", "vgg-light", "vgg-small", "vgg16", "alexnet", "resnet18"}
        Network.
    method : str
        How weights are stored. ``"tucker"`` puts convolution and linear weights on Tucker manifolds,
        ``"dense"`` leaves them alone. ``"loose-tucker"``, ``"loose-cp"``, ``"loose-tt"`` and
        ``"loose-matrix"`` keep factors as plain parameters (:mod:`tenfold.experiments.loose`);
        ``"prune-snip"``, ``"prune-grasp"``, ``"prune-magnitude"`` and ``"prune-imp"`` keep a part of the
        dense weights (:mod:`tenfold.experiments.pruning`).
    optimizer : {"sgd", "adamw", "muon", "tdlrt", "tdlrt-adamw", "tdlrt-muon"}
        How weights move; those of TDLRT are for ``"tucker"`` only.
    rank : float or int, optional
        Rank at the start, a fraction in (0, 1] of the full rank or a number. For ``"tucker"`` and the loose
        methods.
    compression : float, optional
        In [0, 1): 1 − stored / dense over the factored or pruned layers. For the factored methods instead of
        `rank`: all layers start at one fraction of their full rank, the largest that gives it. Without `tau`,
        the ranks of ``"tucker"`` are then redistributed among the layers at this compression.
    start_compression : float, optional
        In (0, compression]: layers start at this compression instead, and what they store falls geometrically
        until half of the steps are done; from then on ranks stay. For ``"tucker"`` with a `compression`.
    per_layer : bool
        Every layer starts at the compression by itself, at a fraction of its own: layers with many numbers
        leave more to the others. For the factored methods with a `compression`.
    decay : float, optional
        At least 1: the weights of the factored layers start with singular values in the proportion
        1, 1 / decay, 1 / decay², … (:mod:`tenfold.experiments.decay`). For ``"tucker"`` and the loose
        methods.
    tau : float, optional
        Relative truncation tolerance in [0, 1): the larger, the smaller the ranks. For ``"tucker"``.
    adapt_every : int, optional
        Steps between two rank decisions; 0 keeps the ranks of the start. For ``"tucker"``; at least 1 for
        ``"tdlrt"``, ``"tdlrt-adamw"`` and ``"tdlrt-muon"``.
    adapt_start : int, optional
        At least 1: steps at the start that keep the ranks, for starts whose singular values say nothing yet.
        For ``"tucker"`` with ranks that are adapted.
    oversampling : int, optional
        At least 1: directions that every rank keeps beyond the others, so that new ones have the time to
        grow, until half of the steps are done; from then on ranks stay. For ``"tucker"`` with ranks that are
        adapted.
    damping : float, optional
        At least 0: how far the steps between rank decisions are damped in the directions of small singular
        values, so that they are made of matrix products only; 0 takes the exact geometry. For ``"tucker"``
        moved by ``"sgd"``, ``"adamw"`` or ``"muon"``.
    factorize_all : bool
        Also factorise or prune the first convolution and the last linear layer. Not for ``"dense"``.
    epochs, batch_size : int
        Passes through the training images, and images in a step.
    lr : float
        Learning rate at the top of the schedule.
    momentum : float
        In [0, 1); the first of the two betas of ``"adamw"`` and ``"tdlrt-adamw"``.
    weight_decay : float
        At least 0, added to the gradient as in :class:`torch.optim.SGD`, or decoupled as in
        :class:`torch.optim.AdamW`.
    schedule : {"one-cycle", "cosine", "constant"}
        Learning rate over the steps.
    seed : int
        Initial weights, order of the images, augmentation and dropout are a function of it.
    amp : bool
        Forward pass in bfloat16 autocast.
    on_nan : {"raise", "skip", "rollback"}
        What to do when a loss, a gradient or a step is not finite: stop with an error; leave the step out, at
        most 10 in a row and 1000 in all; go back to the last checkpoint and draw the batches that follow
        anew, at most 10 times. All but ``"raise"`` wait for the device in every step.
    device : str
        As torch names it (``"cpu"``, ``"cuda:1"``), or ``"auto"``: the GPU where there is one.
    data_dir : str, optional
        Folder of the data sets; the environment variable ``TENFOLD_DATA`` where it is None.
    checkpoint_every : int, optional
        Steps between two checkpoints within an epoch, at least 1; None saves after every epoch only. It does
        not change the result, except that with ``on_nan="rollback"`` it decides how far a run goes back.

    Raises
    ------
    ValueError
        A field is out of its range, or has no effect on the method or the optimizer. The message names the
        field.
    TypeError
        A field is of the wrong type.
    """

    data: str = "digits"
    model: str = "lenet5"
    method: str = "tucker"
    optimizer: str = "sgd"
    rank: float | int | None = None
    compression: float | None = None
    start_compression: float | None = None
    per_layer: bool = False
    decay: float | None = None
    tau: float | None = None
    adapt_every: int | None = None
    adapt_start: int | None = None
    oversampling: int | None = None
    damping: float | None = None
    factorize_all: bool = False
    epochs: int = 10
    batch_size: int = 32
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "one-cycle"
    seed: int = 0
    amp: bool = False
    on_nan: str = "raise"
    device: str = "auto"
    data_dir: str | None = None
    checkpoint_every: int | None = None

    @classmethod
    def recipe(cls, **given: Any) -> TrainConfig:
        """Configuration with the fields in `given`, and for the others what trains well on ``given["data"]``.

        Raises
        ------
        TypeError
            `given` has a name that is not a field.
        ValueError
            As for the class; or `given` has a tolerance, and ranks are not adapted.
        """
        unknown = sorted(set(given) - {field.name for field in fields(cls)})
        if unknown:
            raise TypeError(f"a run has no field {', '.join(unknown)}")
        data, method, optimizer = (
            given.get(name, getattr(cls, name)) for name in ("data", "method", "optimizer")
        )
        if not all(isinstance(name, str) for name in (data, method, optimizer)):
            return cls(**given)  # which says what is wrong
        recipe = recipe_for(data, method, optimizer)
        if given.get("compression") is not None:
            recipe.pop("tau", None)
        if given.get("tau") is not None and given.get("adapt_every") == 0:
            # Here and not in every run: of earlier versions, those without a beat hold a tolerance.
            raise ValueError("tau has no effect where adapt_every=0 keeps the ranks for good")
        return cls(**{**recipe, **given})

    def __post_init__(self) -> None:
        self._check_types()
        for name, allowed in (
            ("data", DATA_SETS),
            ("model", MODELS),
            ("method", METHODS),
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("on_nan", ON_NAN),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, not {brief(getattr(self, name))}"
                )
        if self.data == "digits" and self.data_dir is not None:
            raise ValueError("data_dir has no effect on the data set 'digits', which comes with scikit-learn")
        self._check_low_rank_fields()
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            _check_integer(name, getattr(self, name), least)
        if self.checkpoint_every is not None:
            _check_integer("checkpoint_every", self.checkpoint_every, 1)
        for name, ok, wanted in (
            ("lr", _is_number(self.lr) and self.lr > 0, "a positive number"),
            ("momentum", _is_number(self.momentum) and 0 <= self.momentum < 1, "a number in [0, 1)"),
            (
                "weight_decay",
                _is_number(self.weight_decay) and self.weight_decay >= 0,
                "a number, at least 0",
            ),
        ):
            if not ok:
                raise ValueError(f"{name} must be {wanted}, not {brief(getattr(self, name))}")

    def _check_types(self) -> None:
        for name in ("data", "model", "method", "optimizer", "schedule", "device"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a string, not {brief(getattr(self, name))}")
        for name in (*_SWITCHES, "amp"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, not {brief(getattr(self, name))}")
        if self.data_dir is not None and not isinstance(self.data_dir, str):
            raise TypeError(f"data_dir must be a string or None, not {brief(self.data_dir)}")

    def _check_low_rank_fields(self) -> None:
        if self.optimizer not in optimizers_of(self.method):
            raise ValueError(
                f"optimizer must be one of {', '.join(optimizers_of(self.method))} for the method "
                f"{self.method!r}, not {self.optimizer!r}"
            )
        self._check_nothing_is_ignored()
        choices = choices_of(self.method, self.optimizer)
        replaced = ("rank", "tau") if self.compression is not None else ()
        for name in LOW_RANK_DEFAULTS:
            if name in choices and name not in replaced and getattr(self, name) is None:
                object.__setattr__(self, name, low_rank_default(name, self.optimizer))
        if is_pruned(self.method) and self.compression is None:
            raise ValueError(f"compression is needed by the method {self.method!r}: a number in [0, 1)")
        rank = self.rank
        whole = isinstance(rank, int) and not isinstance(rank, bool) and 1 <= rank <= LARGEST
        if rank is not None and not whole and not (isinstance(rank, float) and 0 < rank <= 1):
            raise ValueError(
                f"rank must be a fraction in (0, 1] or a whole number of at least 1, not {brief(rank)}"
            )
        for name in ("tau", "compression"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 <= value < 1):
                raise ValueError(f"{name} must be a number in [0, 1), not {brief(value)}")
        if self.compression == 0 and self.method == "tucker" and self.tau is None and self.adapt_every:
            raise ValueError(
                "compression must be above 0 for the method 'tucker', whose ranks share a budget"
            )
        self._check_start_compression()
        if self.adapt_every is not None:
            _check_integer("adapt_every", self.adapt_every, 0)
            if moves_on_the_beat(self.optimizer) and self.adapt_every == 0:
                raise ValueError(
                    f"adapt_every must be at least 1 for the optimizer {self.optimizer!r}, which moves bases "
                    "in these steps only"
                )
        for name in ("adapt_start", "oversampling"):
            if getattr(self, name) is not None:
                _check_integer(name, getattr(self, name), 1)
                if not self.adapt_every:
                    raise ValueError(f"{name} has no effect where adapt_every=0 keeps the ranks for good")
        if self.damping is not None and not (_is_number(self.damping) and self.damping >= 0):
            raise ValueError(f"damping must be a number, at least 0, not {brief(self.damping)}")
        if self.decay is not None and not (_is_number(self.decay) and self.decay >= 1):
            raise ValueError(f"decay must be a number, at least 1, not {brief(self.decay)}")

    def _check_start_compression(self) -> None:
        start, end = self.start_compression, self.compression
        if start is None:
            return
        if end is None or self.tau is not None:
            raise ValueError("start_compression needs a compression to fall to, and no tau")
        if not (_is_number(start) and 0 < start <= end):
            raise ValueError(
                f"start_compression must be a number in (0, compression] = (0, {end:g}], not {brief(start)}"
            )
        if not self.adapt_every:
            raise ValueError("start_compression needs adapt_every to be at least 1, so that ranks can fall")

    def _check_nothing_is_ignored(self) -> None:
        given = [name for name in _OF_SOME_METHODS if getattr(self, name) is not None]
        given += [name for name in _SWITCHES if getattr(self, name)]
        by_method = frozenset[str]().union(*(choices_of(self.method, o) for o in optimizers_of(self.method)))
        ignored = [name for name in given if name not in by_method]
        if ignored:
            raise ValueError(f"{', '.join(ignored)} has no effect on the method {self.method!r}")
        ignored = [name for name in given if name not in choices_of(self.method, self.optimizer)]
        if ignored:
            raise ValueError(f"{', '.join(ignored)} has no effect on the optimizer {self.optimizer!r}")
        if self.rank is not None and self.compression is not None:
            raise ValueError("rank and compression both say how large the factors are: give one of them")
        if self.per_layer and self.compression is None:
            raise ValueError("per_layer needs a compression for every layer to start at")

    def dense_twin(self) -> TrainConfig:
        """The same run with every weight dense: same network, seed, schedule and steps."""
        nothing: dict[str, Any] = dict.fromkeys(_OF_SOME_METHODS) | dict.fromkeys(_SWITCHES, False)
        return replace(self, method="dense", optimizer=dense_counterpart(self.optimizer), **nothing)

    def identity(self) -> dict[str, Any]:
        """The fields that decide the result; the youngest of them only where they are not the default."""
        values = {name: value for name, value in asdict(self).items() if name not in PLACE_FIELDS}
        for name in ("on_nan", "adapt_start", "oversampling", "start_compression", "per_layer"):
            if values[name] == _ADDED_LATER[name]:
                del values[name]  # runs of earlier versions keep their identity
        if self.on_nan == "rollback":
            values["checkpoint_every"] = self.checkpoint_every
        return values

    def differences(self, other: TrainConfig) -> list[tuple[str, Any, Any]]:
        """Fields in which two runs would compute something else, as (name, here, there)."""
        decisive = {**self.identity(), **other.identity()}
        names = [field.name for field in fields(self) if field.name in decisive]
        pairs = [(n, getattr(self, n), getattr(other, n)) for n in names]
        # The rank 1 is a number, 1.0 all of it.
        return [(n, a, b) for n, a, b in pairs if a != b or (n == "rank" and type(a) is not type(b))]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Inverse of :meth:`to_dict`.

        Raises
        ------
        ValueError
            `values` does not have exactly the fields of a run; those added later may be missing.
        """
        expected = {field.name for field in fields(cls)}
        values = {**_ADDED_LATER, **values}
        if set(values) != expected:
            odd = ", ".join(sorted(map(str, set(values) ^ expected)))
            raise ValueError(
                f"this is not a run of this version of tenfold: field {odd} is missing or unknown"
            )
        return cls(**values)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _check_integer(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {brief(value)}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {brief(value)}")
    if value > LARGEST:
        raise ValueError(f"{name} must be below 2^63")
