"""tenfold: neural networks whose weights live on low-rank tensor manifolds."""

import importlib
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tenfold import linalg, manifolds, nn, optim

try:
    __version__ = version("tenfold")
except PackageNotFoundError:  # running from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__", "linalg", "manifolds", "nn", "optim"]


def __getattr__(name: str) -> ModuleType:
    # The rooms are imported when they are first named: the command line answers --help without torch.
    if name in __all__:
        return importlib.import_module(f"tenfold.{name}")
    raise AttributeError(f"module 'tenfold' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
