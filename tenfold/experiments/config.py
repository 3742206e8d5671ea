"""What a training run is: every choice that decides its result, validated, in one dataclass."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

DATA_SETS = ("digits", "mnist", "cifar10")
MODELS = ("lenet5", "vgg-small", "vgg16", "alexnet", "resnet18")
METHODS = ("tucker", "dense")
SCHEDULES = ("one-cycle", "cosine", "constant")

# Where a run takes place, not what it computes: the only fields a resumed run may change.
_PLACE_FIELDS = ("data_dir", "device")
_LOW_RANK_DEFAULTS: dict[str, Any] = {"rank": 0.5, "tau": 0.15, "adapt_every": 10, "damping": 0.05}
_RECIPES: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 20, "batch_size": 32, "lr": 0.05, "tau": 0.15},
    "mnist": {"epochs": 5, "batch_size": 64, "lr": 0.05, "tau": 0.2},
    "cifar10": {"epochs": 20, "batch_size": 128, "lr": 0.1, "weight_decay": 5e-4, "tau": 0.05},
}


@dataclass(frozen=True)
class TrainConfig:
    """One training run. :meth:`recipe` fills in defaults that train well for a data set.

    Parameters
    ----------
    data : {"digits", "mnist", "cifar10"}
        Data set; all but ``"digits"`` are read from `data_dir`.
    model : {"lenet5", "vgg-small", "vgg16", "alexnet", "resnet18"}
        Network.
    method : {"tucker", "dense"}
        ``"tucker"`` puts convolution and linear weights on Tucker manifolds, ``"dense"`` leaves them alone.
    rank : float or int, optional
        Rank at the start, a fraction in (0, 1] of each compressed mode or a number. Not for ``"dense"``.
    tau : float, optional
        Relative truncation tolerance in [0, 1): the larger, the smaller the ranks. Not for ``"dense"``.
    adapt_every : int, optional
        Steps between two rank decisions; 0 keeps the ranks of the start. Not for ``"dense"``.
    damping : float, optional
        At least 0: how far the steps between rank decisions are damped in the directions of small singular
        values, so that they are made of matrix products only; 0 takes the exact geometry. Not for
        ``"dense"``.
    factorize_all : bool
        Also factorise the first convolution and the last linear layer. Not for ``"dense"``.
    epochs, batch_size : int
        Passes through the training images, and images in a step.
    lr : float
        Learning rate at the top of the schedule.
    momentum : float
        In [0, 1).
    weight_decay : float
        At least 0, added to the gradient as in :class:`torch.optim.SGD`.
    schedule : {"one-cycle", "cosine", "constant"}
        Learning rate over the steps.
    seed : int
        Initial weights, order of the images, augmentation and dropout are a function of it.
    amp : bool
        Forward pass in bfloat16 autocast.
    device : str
        As torch names it (``"cpu"``, ``"cuda:1"``), or ``"auto"``: the GPU where there is one.
    data_dir : str, optional
        Folder of the data sets; the environment variable ``TENFOLD_DATA`` where it is None.

    Raises
    ------
    ValueError
        A field is out of its range, or a field of the low-rank methods is given to the dense one. The message
        names the field.
    TypeError
        A field is of the wrong type.
    """

    data: str = "digits"
    model: str = "lenet5"
    method: str = "tucker"
    rank: float | int | None = None
    tau: float | None = None
    adapt_every: int | None = None
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
    device: str = "auto"
    data_dir: str | None = None

    @classmethod
    def recipe(cls, **given: Any) -> TrainConfig:
        """Configuration with the fields in `given`, and for the others what trains well on ``given["data"]``.

        Raises
        ------
        TypeError
            `given` has a name that is not a field.
        """
        unknown = sorted(set(given) - {field.name for field in fields(cls)})
        if unknown:
            raise TypeError(f"a run has no field {', '.join(unknown)}")
        recipe = dict(_RECIPES.get(given.get("data", "digits"), {}))
        if given.get("method") == "dense":
            recipe = {name: value for name, value in recipe.items() if name not in _LOW_RANK_DEFAULTS}
        return cls(**{**recipe, **given})

    def __post_init__(self) -> None:
        for name, allowed in (
            ("data", DATA_SETS),
            ("model", MODELS),
            ("method", METHODS),
            ("schedule", SCHEDULES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if self.data == "digits" and self.data_dir is not None:
            raise ValueError("data_dir has no effect on the data set 'digits', which comes with scikit-learn")
        self._check_low_rank_fields()
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            _check_integer(name, getattr(self, name), least)
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
                raise ValueError(f"{name} must be {wanted}, not {getattr(self, name)!r}")

    def _check_low_rank_fields(self) -> None:
        if self.method == "dense":
            given = [name for name in _LOW_RANK_DEFAULTS if getattr(self, name) is not None]
            given += ["factorize_all"] if self.factorize_all else []
            if given:
                raise ValueError(f"{', '.join(given)} has no effect on the method 'dense'")
            return
        for name, default in _LOW_RANK_DEFAULTS.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        rank, tau = self.rank, self.tau
        whole = isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
        if not whole and not (isinstance(rank, float) and 0 < rank <= 1):
            raise ValueError(
                f"rank must be a fraction in (0, 1] or a whole number of at least 1, not {rank!r}"
            )
        if not (_is_number(tau) and 0 <= tau < 1):  # type: ignore[operator]
            raise ValueError(f"tau must be a number in [0, 1), not {tau!r}")
        _check_integer("adapt_every", self.adapt_every, 0)
        if not (_is_number(self.damping) and self.damping >= 0):  # type: ignore[operator]
            raise ValueError(f"damping must be a number, at least 0, not {self.damping!r}")

    def dense_twin(self) -> TrainConfig:
        """The same run with every weight dense: same network, seed, schedule and steps."""
        nothing: dict[str, Any] = dict.fromkeys(_LOW_RANK_DEFAULTS)
        return replace(self, method="dense", factorize_all=False, **nothing)

    def differences(self, other: TrainConfig) -> list[tuple[str, Any, Any]]:
        """Fields in which two runs would compute something else, as (name, here, there)."""
        names = [field.name for field in fields(self) if field.name not in _PLACE_FIELDS]
        return [
            (n, getattr(self, n), getattr(other, n)) for n in names if getattr(self, n) != getattr(other, n)
        ]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Inverse of :meth:`to_dict`.

        Raises
        ------
        ValueError
            `values` does not have exactly the fields of a run.
        """
        expected = {field.name for field in fields(cls)}
        if set(values) != expected:
            odd = ", ".join(sorted(set(values) ^ expected))
            raise ValueError(
                f"this is not a run of this version of tenfold: field {odd} is missing or unknown"
            )
        return cls(**values)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_integer(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")
