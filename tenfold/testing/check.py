"""Checks: a named property, callable on a manifold, and the list of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import geoopt
import torch

from tenfold.linalg import LINALG_DTYPES
from tenfold.testing.kinds import subject_of
from tenfold.testing.outcome import CheckResult, Measured, NotApplicable, Status
from tenfold.testing.points import Spectrum, checked_spectrum
from tenfold.testing.sample import Sample
from tenfold.testing.subject import Embedding

__all__ = ["CHECKS", "Check", "check"]

Body = Callable[[Sample], Iterable[Measured]]


@dataclass(frozen=True)
class Check:
    """A property of a manifold.

    Call it on a manifold to measure one example.

    Attributes
    ----------
    id : str
        Its short name, such as ``"J1"``.
    title : str
        Its statement.
    body : callable
        Yields what it measures on a :class:`~tenfold.testing.sample.Sample`.
    """

    id: str
    title: str
    body: Body

    def __call__(
        self,
        manifold: geoopt.Manifold,
        *,
        batch: tuple[int, ...] = (3,),
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
        condition: float = 1.0,
        spectrum: Spectrum = Spectrum.DECAY,
        shape: tuple[int, ...] | None = None,
        embed: Embedding | None = None,
        order: int | None = None,
    ) -> CheckResult:
        """Measure one example.

        Parameters
        ----------
        manifold : geoopt.Manifold
            The manifold.
        batch : tuple of int
            Leading dimensions of the points.
        dtype : torch.dtype
            float32 or float64. Slopes are measured in float64 whatever it is.
        seed : int
            Seed of all numbers.
        condition : float
            Condition number of the points, where it can be prescribed.
        spectrum : Spectrum
            Distribution of their singular values, where it can be prescribed.
        shape, embed, order
            As for :func:`~tenfold.testing.check_manifold`.

        Returns
        -------
        CheckResult
            Passed, failed with the measurement, or not applicable with the reason.

        Raises
        ------
        TypeError, ValueError
            If an argument makes no sense; what the manifold raises is a failed check.
        """
        if dtype not in LINALG_DTYPES:
            raise TypeError(f"dtype must be float32 or float64, got {dtype}")
        if 0 in batch:
            raise ValueError(f"an empty batch has nothing to measure, got batch={tuple(batch)}")
        spectrum = checked_spectrum(spectrum, condition)
        subject = subject_of(manifold, shape=shape, embed=embed, order=order).at(dtype)
        return self.on(Sample(subject, tuple(batch), dtype, seed, condition, spectrum))

    def on(self, sample: Sample) -> CheckResult:
        """Measure a sample."""
        try:
            return CheckResult.of(self.id, self.title, self.body(sample), str(sample))
        except NotApplicable as refusal:
            return CheckResult(self.id, self.title, Status.NOT_APPLICABLE, str(refusal), examples=0)
        except NotImplementedError as error:
            if sample.subject.low_rank is not None:
                return self._raised(sample, error)
            reason = str(error) or "an operation that it needs is not implemented"
            return CheckResult(self.id, self.title, Status.NOT_APPLICABLE, reason, examples=0)
        except Exception as error:  # whatever a wrong manifold raises is the finding
            return self._raised(sample, error)

    def _raised(self, sample: Sample, error: Exception) -> CheckResult:
        message = " ".join(str(error).split())
        reason = f"raised {type(error).__name__}: {message} [{sample}]"
        worst = Measured("no error is raised", float("inf"), 0.0)
        return CheckResult(self.id, self.title, Status.FAILED, reason, worst)

    def __str__(self) -> str:
        return self.id


CHECKS: dict[str, Check] = {}
"""Every check by its id, in the order of the letters: points first, truncation last."""

_LETTERS = "PTJMRVGQ"


def _position(id: str) -> tuple[int, str, str]:
    letter = _LETTERS.find(id[:1])
    return letter if letter >= 0 else len(_LETTERS), id[:1], id[1:].zfill(3)


def check(id: str, title: str) -> Callable[[Body], Check]:
    """Enter a function that yields measurements into :data:`CHECKS`.

    Raises
    ------
    ValueError
        If the id is taken.
    """

    def enter(body: Body) -> Check:
        if id in CHECKS:
            raise ValueError(f"there is a check {id} already: {CHECKS[id].title}")
        entered = {**CHECKS, id: Check(id, title, body)}
        CHECKS.clear()
        CHECKS.update(sorted(entered.items(), key=lambda item: _position(item[0])))
        return entered[id]

    return enter
