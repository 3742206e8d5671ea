"""What plain data must look like: small checks, combined to the layout of a file.

A check is called with the place and the value, and raises a ValueError that names the place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

__all__ = [
    "LARGEST",
    "Check",
    "anything",
    "brief",
    "either",
    "finite",
    "flag",
    "fraction",
    "listing",
    "mapping",
    "number",
    "one_of",
    "optional",
    "plain",
    "record",
    "row",
    "text",
    "whole",
]

Check = Callable[[str, Any], None]

LARGEST = 2**63 - 1
"""The largest whole number that files may hold; torch and numpy have no larger ones."""


def brief(value: object) -> str:
    """A value for a message: numbers and short strings as they are, of everything else the type."""
    if isinstance(value, str):
        return repr(value if len(value) <= 80 else value[:77] + "...")
    if value is None or isinstance(value, (bool, float)) or (type(value) is int and abs(value) <= LARGEST):
        return repr(value)
    return f"a value of the type {type(value).__name__}"


def whole(least: int = 0, most: int = LARGEST) -> Check:
    """A whole number in a range."""

    def check(where: str, value: Any) -> None:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"{where} must be a whole number from {least} to {most}, not {brief(value)}")

    return check


def number(where: str, value: Any) -> None:
    """A number, also NaN or infinity: losses become that."""
    if isinstance(value, float) or (type(value) is int and abs(value) <= LARGEST):
        return
    raise ValueError(f"{where} must be a number, not {brief(value)}")


def finite(where: str, value: Any) -> None:
    """A number that is neither NaN nor infinite."""
    number(where, value)
    if not math.isfinite(value):
        raise ValueError(f"{where} must be finite, not {value}")


def fraction(where: str, value: Any) -> None:
    """A number in [0, 1]."""
    number(where, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{where} must lie in [0, 1], not {value}")


def flag(where: str, value: Any) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{where} must be true or false, not {brief(value)}")


def text(where: str, value: Any) -> None:
    """A string."""
    if not isinstance(value, str):
        raise ValueError(f"{where} must be a string, not {brief(value)}")


def anything(where: str, value: Any) -> None:
    """Whatever it is; it is checked elsewhere."""


def plain(where: str, value: Any) -> None:
    """None, a number, a string, True or False."""
    if value is not None and not isinstance(value, (str, bool)):
        number(where, value)


def one_of(*values: object) -> Check:
    """One of some values of simple types."""

    def check(where: str, value: Any) -> None:
        if not any(type(value) is type(known) and value == known for known in values):
            raise ValueError(f"{where} must be one of {', '.join(map(str, values))}, not {brief(value)}")

    return check


def optional(check: Check) -> Check:
    """None, or what passes a check."""
    return lambda where, value: None if value is None else check(where, value)


def either(*checks: Check) -> Check:
    """What passes one of some checks; the message is that of the last."""

    def combined(where: str, value: Any) -> None:
        for check in checks[:-1]:
            try:
                return check(where, value)
            except ValueError:
                continue
        checks[-1](where, value)

    return combined


def listing(check: Check, least: int = 0) -> Check:
    """A list or tuple whose items pass a check."""

    def every(where: str, value: Any) -> None:
        if not isinstance(value, (list, tuple)) or len(value) < least:
            raise ValueError(f"{where} must be a list of at least {least} items, not {brief(value)}")
        for position, item in enumerate(value):
            check(f"{where}[{position}]", item)

    return every


def mapping(check: Check) -> Check:
    """A mapping from strings to what passes a check."""

    def every(where: str, value: Any) -> None:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be a mapping, not {brief(value)}")
        for key, item in value.items():
            text(f"a name in {where}", key)
            check(f"{where}.{brief(key)[1:-1]}", item)

    return every


def record(checks: Mapping[str, Check], extra: Check | None = None) -> Check:
    """A mapping with exactly these keys, or with others that pass `extra`, too."""

    def every(where: str, value: Any) -> None:
        mapping(anything)(where, value)
        others = {key: item for key, item in value.items() if key not in checks}
        missing = [key for key in checks if key not in value]
        unknown = [] if extra else list(others)
        if missing or unknown:
            problem = "has no" if missing else "must not have"
            raise ValueError(f"{where} {problem} {brief((missing or unknown)[0])}")
        for key, check in checks.items():
            check(f"{where}.{key}", value[key])
        if extra:
            mapping(extra)(where, others)

    return every


def row(*checks: Check) -> Check:
    """A list or tuple of a fixed length, one check for each item."""

    def every(where: str, value: Any) -> None:
        if not isinstance(value, (list, tuple)) or len(value) != len(checks):
            raise ValueError(f"{where} must be a list of {len(checks)} items, not {brief(value)}")
        for position, (check, item) in enumerate(zip(checks, value, strict=True)):
            check(f"{where}[{position}]", item)

    return every
