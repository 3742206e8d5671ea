"""tenfold: neural networks whose weights live on low-rank tensor manifolds."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("tenfold")
except PackageNotFoundError:  # running from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
