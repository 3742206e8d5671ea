"""A part of a sweep: the runs whose fields have the values that are asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from tenfold.experiments.config import PLACE_FIELDS, TrainConfig
from tenfold.experiments.grid import Sweep
from tenfold.untrusted.values import brief

_KEYS = tuple(f.name for f in fields(TrainConfig) if f.name not in (*PLACE_FIELDS, "lr"))  # trials find lr


def part_of(sweep: Sweep, conditions: Sequence[str]) -> Sweep:
    """The runs of `sweep` that meet every condition, with their trials, in the order of the sweep.

    Parameters
    ----------
    sweep : Sweep
        All runs.
    conditions : sequence of str
        Each ``KEY=VALUE`` or ``KEY=VALUE,VALUE``, with the fields and values of the sweep's file, ``null``,
        ``true`` and ``false`` among them.

    Returns
    -------
    Sweep
        Of the same name. Trials are those of the whole sweep, whatever is left of it.

    Raises
    ------
    ValueError
        A condition has no key or value, a key is none that runs can be chosen by or is there twice, no run of
        the sweep has a value, or none meets all conditions.
    """
    entries = sweep.entries
    asked: set[str] = set()
    for condition in conditions:
        key, values = _read(sweep, condition)
        if key in asked:
            raise ValueError(f"{key} is asked for twice: write {key}=VALUE,VALUE for either")
        asked.add(key)
        entries = tuple(
            entry for entry in entries if any(_is(getattr(entry.config, key), value) for value in values)
        )
    if not entries:
        raise ValueError(f"no run of {sweep.name} has all of {' '.join(conditions)}")
    return replace(sweep, entries=entries)


def _read(sweep: Sweep, condition: str) -> tuple[str, list[str]]:
    key, equals, text = condition.partition("=")
    if not equals or not text:
        raise ValueError(f"runs are chosen by KEY=VALUE, not by {brief(condition)}")
    if key not in _KEYS:
        raise ValueError(f"runs cannot be chosen by {brief(key)}, but by {', '.join(_KEYS)}")
    there = {_written(value): value for value in (getattr(entry.config, key) for entry in sweep.entries)}
    # The ranks of layers have commas themselves.
    values = [text] if any(_is(value, text) for value in there.values()) else text.split(",")
    for asked in values:
        if not any(_is(value, asked) for value in there.values()):
            raise ValueError(f"no run of {sweep.name} has {key}={asked}; there are {', '.join(there)}")
    return key, values


def _is(value: Any, text: str) -> bool:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(text) == value
        except ValueError:
            return False
    return text == _written(value)


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
