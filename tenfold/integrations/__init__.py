"""Optional pieces for other training frameworks; each module needs the framework it is named after."""

from tenfold.integrations.scalars import rank_scalars

__all__ = ["rank_scalars"]
