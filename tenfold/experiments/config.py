"""What a training run is: every choice that decides its result, validated, in one dataclass."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from tenfold.experiments.combinations import choices_of, dense_counterpart
from tenfold.experiments.config_checks import (
    OF_DECISIONS,
    OF_SOME_METHODS,
    SWITCHES,
    check_combination,
    check_types,
    check_values,
)
from tenfold.experiments.recipes import LOW_RANK_DEFAULTS, low_rank_default, recipe_for

PLACE_FIELDS = ("data_dir", "device", "checkpoint_every")
"""Where a run takes place and is saved, not what it computes; a resumed run may change these alone."""

# Fields that runs of earlier versions do not have, with what they did. At these values the youngest do not
# count in the identity of a run, so that sweeps of before they were there find their runs again.
_YOUNGEST: dict[str, Any] = {
    "on_nan": "raise",
    "start_compression": None,
    "per_layer": False,
    "ranks": None,
    **dict.fromkeys(OF_DECISIONS),
}
_ADDED_LATER: dict[str, Any] = {
    "optimizer": "sgd",
    "compression": None,
    "decay": None,
    "checkpoint_every": None,
    **_YOUNGEST,
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
    ranks : str, optional
        Instead of `rank`: that of each layer, ``"conv2=5x3,fc1=4x4"``. A number alone is lowered to what is
        feasible, several, one for each rank of the layer, have to be.
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
    min_rank : int, optional
        At least 1: what decisions leave of every rank; None is the default of the rank policy, 2 for a given
        compression and 1 for a tolerance. For ``"tucker"`` with ranks that are adapted.
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
    ranks: str | None = None
    compression: float | None = None
    start_compression: float | None = None
    per_layer: bool = False
    decay: float | None = None
    tau: float | None = None
    min_rank: int | None = None
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
        check_types(self)
        check_combination(self)
        choices = choices_of(self.method, self.optimizer)
        replaced = ("rank", "tau") if self.compression is not None else ("rank",) if self.ranks else ()
        for name in LOW_RANK_DEFAULTS:
            if name in choices and name not in replaced and getattr(self, name) is None:
                object.__setattr__(self, name, low_rank_default(name, self.optimizer))
        check_values(self)

    def dense_twin(self) -> TrainConfig:
        """The same run with every weight dense: same network, seed, schedule and steps."""
        nothing: dict[str, Any] = dict.fromkeys(OF_SOME_METHODS) | dict.fromkeys(SWITCHES, False)
        return replace(self, method="dense", optimizer=dense_counterpart(self.optimizer), **nothing)

    def identity(self) -> dict[str, Any]:
        """The fields that decide the result; the youngest of them only where they are not the default."""
        values = {name: value for name, value in asdict(self).items() if name not in PLACE_FIELDS}
        for name, former in _YOUNGEST.items():
            if values[name] == former:
                del values[name]
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
