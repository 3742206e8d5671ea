"""A sweep's file: which runs it asks for, and which learning rates are tried for them."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tenfold.experiments.combinations import OPTIMIZERS
from tenfold.experiments.config import PLACE_FIELDS, TrainConfig
from tenfold.untrusted.values import brief
from tenfold.untrusted.yaml_file import read_yaml

_MOST_RUNS = 100_000
_SECTIONS = ("name", "common", "seeds", "rates", "tune", "blocks")
_TUNE_KEYS = ("epochs", "seed")
_AXES = tuple(f.name for f in fields(TrainConfig) if f.name not in (*PLACE_FIELDS, "seed"))
_SIZES = ("tau", "rank", "compression")  # runs that differ in these and the seed share a learning rate


@dataclass(frozen=True)
class Entry:
    """One run of a sweep.

    Parameters
    ----------
    config : TrainConfig
        The run; its learning rate is to be replaced by the best of the trials, if there are some.
    trials : tuple of TrainConfig
        Short runs that differ in the learning rate alone.
    """

    config: TrainConfig
    trials: tuple[TrainConfig, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """What a sweep's file asks for.

    Parameters
    ----------
    name : str
        Of the sweep.
    entries : tuple of Entry
        The runs, seed by seed in the order of the file.
    """

    name: str
    entries: tuple[Entry, ...]

    @property
    def trials(self) -> list[TrainConfig]:
        """All trials, each once."""
        # By id: runs of the ranks 1 and 1.0, which are not the same, are equal.
        return list({run_id(trial): trial for entry in self.entries for trial in entry.trials}.values())


def run_id(config: TrainConfig) -> str:
    """Twelve hexadecimal digits that stand for all that decides the result of a run."""
    return blake2b(json.dumps(config.identity(), sort_keys=True).encode(), digest_size=6).hexdigest()


def read_sweep(path: Path, data_dir: str | None = None) -> Sweep:
    """Read a sweep's file.

    Parameters
    ----------
    path : Path
        YAML, read without letting it make objects; see the page on the command line for the keys.
    data_dir : str, optional
        Folder of the data sets, for all runs that read theirs from a folder.

    Raises
    ------
    ValueError
        The file is not YAML, a key is unknown or missing, or a value is not allowed; the message names the
        key.
    OSError
        The file cannot be read.
    """
    contents = read_yaml(path)
    try:
        return _sweep(contents, path.stem, data_dir)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _sweep(contents: Any, stem: str, data_dir: str | None) -> Sweep:
    contents = _mapping("the file", contents, _SECTIONS)
    common = _mapping("common", contents.get("common", {}), _AXES)
    rates = _mapping("rates", contents.get("rates", {}), OPTIMIZERS)
    blocks = contents.get("blocks")
    if not isinstance(blocks, list) or not blocks:
        raise ValueError(f"blocks must be a list of at least one block, not {brief(blocks)}")
    entries: dict[str, Entry] = {}
    for number, block in enumerate(blocks):
        where = f"blocks[{number}]"
        block = _mapping(where, block, (*_AXES, "seeds"))
        seeds = _seeds(where, block.pop("seeds", contents.get("seeds", 1)))
        for config in _product(where, {**common, **block}, rates, data_dir):
            trials = _trials(config, contents.get("tune"), where)
            for seed in seeds:
                if trials and trials[0].seed == seed:
                    raise ValueError(f"tune.seed {seed} is also a seed of {where}: a trial must not be a run")
                one = replace(config[0], seed=seed)
                entries.setdefault(run_id(one) + str(trials), Entry(one, trials))
                if len(entries) > _MOST_RUNS:
                    raise ValueError(f"{where} brings the sweep to more than {_MOST_RUNS} runs")
    tried = {run_id(trial) for entry in entries.values() for trial in entry.trials}
    for entry in entries.values():
        if not entry.trials and run_id(entry.config) in tried:
            raise ValueError(
                f"tune.seed {entry.config.seed} makes a trial of a run that is asked for, too: a trial must "
                "not be a run"
            )
    if data_dir is not None and all(entry.config.data_dir is None for entry in entries.values()):
        raise ValueError("data_dir has no effect on the data set 'digits', which comes with scikit-learn")
    # Stopped early, a sweep then has every setting with its first seeds.
    by_seed = sorted(entries.values(), key=lambda entry: entry.config.seed)
    return Sweep(str(contents.get("name", stem)), tuple(by_seed))


_Candidate = tuple[TrainConfig, Sequence[float], TrainConfig]
"""A run, the rates to try for it, and the run of middle size that they are tried on."""


def _product(
    where: str, axes: Mapping[str, Any], rates: Mapping[str, Any], data_dir: str | None
) -> list[_Candidate]:
    """Every combination of the listed values."""
    axes = dict(axes)
    own = axes.pop("lr", None)
    if own == []:
        raise ValueError(f"{where}.lr is an empty list")
    choices = {name: value if isinstance(value, list) else [value] for name, value in axes.items()}
    empty = [name for name, value in choices.items() if not value]
    if empty:
        raise ValueError(f"{where}.{empty[0]} is an empty list")
    number = math.prod(len(choice) for choice in choices.values())
    if number > _MOST_RUNS:
        raise ValueError(f"{where} asks for {number} combinations, more than the {_MOST_RUNS} of a sweep")
    middle = {name: _middle(f"{where}.{name}", choices[name]) for name in _SIZES if name in choices}
    candidates: list[_Candidate] = []
    for values in itertools.product(*choices.values()):
        given = dict(zip(choices, values, strict=True))
        if data_dir is not None and given.get("data", TrainConfig.data) != "digits":
            given["data_dir"] = data_dir
        optimizer = given.get("optimizer", "sgd")
        if own is None and rates and optimizer not in rates:
            raise ValueError(
                f"rates has no {brief(optimizer)}: it must have every optimizer of blocks without an lr"
            )
        tried = own if own is not None else rates.get(optimizer)
        if tried == []:
            raise ValueError(f"rates.{optimizer} is an empty list")
        tried = tried if isinstance(tried, list) or tried is None else [tried]
        first = {} if not tried else {"lr": tried[0]}
        try:
            config = TrainConfig.recipe(**given, **first)
            for rate in tried or ():
                replace(config, lr=rate)  # each must be a rate
            candidates.append((config, tried or (), TrainConfig.recipe(**{**given, **middle}, **first)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error
    return candidates


def _trials(candidate: _Candidate, tune: Any, where: str) -> tuple[TrainConfig, ...]:
    _, rates, middle = candidate
    if len(rates) < 2:
        return ()
    if tune is None:
        raise ValueError(
            f"tune is missing: {where} has the learning rates {', '.join(f'{r:g}' for r in rates)}, so that "
            "epochs and seed of their trials must be given"
        )
    tune = _mapping("tune", tune, _TUNE_KEYS)
    for key in _TUNE_KEYS:
        if key not in tune:
            raise ValueError(f"tune has no {key}: give the epochs and the seed of the trials")
    try:
        trial = replace(middle, **tune)
    except (TypeError, ValueError) as error:
        raise ValueError(f"tune: {error}") from error
    return tuple(replace(trial, lr=rate) for rate in rates)


def _middle(where: str, values: Sequence[Any]) -> Any:
    """The middle one of the numbers; what is none is refused by the run that has it."""
    if len(values) > 1 and None in values:
        raise ValueError(f"{where} must not have null among several values, which have to have a middle")
    numbers = [value for value in values if isinstance(value, (int, float))]
    return statistics.median_high(sorted(numbers)) if numbers else values[0]


def _seeds(where: str, value: Any) -> list[int]:
    """``20`` means 0 to 19."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        if value > _MOST_RUNS:
            raise ValueError(f"{where}.seeds must be at most {_MOST_RUNS}, not {brief(value)}")
        return list(range(value))
    if isinstance(value, list) and value and all(isinstance(seed, int) for seed in value):
        return value
    raise ValueError(f"{where}.seeds must be a number of seeds or a list of them, not {brief(value)}")


def _mapping(where: str, value: Any, known: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a mapping, not {brief(value)}")
    for key in value:
        if key not in known:
            raise ValueError(f"{where} has no key {brief(key)}; there are {', '.join(known)}")
    return dict(value)
