"""YAML of limited size and depth, without the parts of it that expand or make objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tenfold.untrusted.text import SMALL_FILE, read_text
from tenfold.untrusted.values import brief

__all__ = ["read_yaml"]


def read_yaml(path: Path) -> Any:
    """Plain data from a YAML file.

    Tags that make objects are refused, and aliases too: a few lines of them stand for more data than
    fits in memory.

    Raises
    ------
    ValueError
        The file is not YAML, uses an alias, has a key twice, is nested too deep, or is larger than a MiB.
    OSError
        The file cannot be read.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ValueError(f"it uses the alias *{self.peek_event().anchor}: write the value out")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            pairs = node.value if isinstance(node, yaml.MappingNode) else []
            seen: set[str] = set()
            for key in (key for key, _ in pairs if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    raise ValueError(f"line {key.start_mark.line + 1} has the key {brief(key.value)} again")
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    text = read_text(path, SMALL_FILE)
    try:
        return yaml.load(text, Loader)
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deep") from error
    except MemoryError:
        raise
    except Exception as error:  # the constructors of dates and numbers raise several
        raise ValueError(f"{path} is not YAML: {error}") from error
