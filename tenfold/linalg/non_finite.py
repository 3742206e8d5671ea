"""The error of everything that meets NaN or infinity where numbers are needed."""

__all__ = ["NonFiniteError"]


class NonFiniteError(ValueError):
    """A loss, a gradient, a step or a matrix holds NaN or infinity; nothing has been changed."""
