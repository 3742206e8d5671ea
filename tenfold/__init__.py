"""tenfold: neural networks whose weights live on low-rank tensor manifolds."""

from importlib.metadata import PackageNotFoundError, version

from tenfold import linalg, manifolds, nn, optim

try:
    __version__ = version("tenfold")
except PackageNotFoundError:  # running from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__", "linalg", "manifolds", "nn", "optim"]
