"""The command line, ``tenfold`` or ``python -m tenfold``: train one network, compare finished runs."""

from tenfold.cli.entry import main

__all__ = ["main"]
