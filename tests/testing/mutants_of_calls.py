"""Mutants that are wrong only when called in a certain way: by a frame, a target, a limit, an odd batch."""

import torch

from tenfold.manifolds import HierarchicalTuckerManifold, TensorTrainManifold, TuckerManifold

from .mutants import mutant

# Frames --------------------------------------------------------------------------------------


@mutant("G1")
class GradientWithAFrameIsReversed(TuckerManifold):
    def egrad2rgrad(self, x, u, *, frame=None):
        return super().egrad2rgrad(x, u, frame=frame) * (1 if frame is None else -2)


@mutant("V7")
class RetractionWithAFrameIsReversed(TuckerManifold):
    def retr(self, x, u, *, frame=None):
        return super().retr(x, u if frame is None else -u, frame=frame)


@mutant("V7", (3, 4, 3, 2), (2, 3, 2))
class TransportWithAFrameProjects(TensorTrainManifold):
    def transp(self, x, y, v, *, target=None, frame=None):
        return super().transp(x, y, v, target=target) if frame is None else self.proju(y, v)


@mutant("V7")
class SquaresWithAFrameStay(TuckerManifold):
    def transp_squares(self, x, y, s, *, target=None, frame=None):
        return super().transp_squares(x, y, s, target=target) if frame is None else s.clone()


@mutant("R6")
class TruncationWithAFrameForgetsTheStep(TuckerManifold):
    def truncation(self, x, u=None, *, frame=None):
        return super().truncation(x, u if frame is None else None)


# Maps that the others do not go through ------------------------------------------------------


@mutant("R5")
class ExponentialMapStays(TuckerManifold):
    def expmap(self, x, u):
        return x


@mutant("R5", (3, 4, 3, 2), 2)
class ExponentialMapGoesTwiceAsFar(HierarchicalTuckerManifold):
    def expmap(self, x, u):
        return self.retr(x, 2 * u)


@mutant("V1")
class SquaresAreNegative(TuckerManifold):
    def transp_squares(self, x, y, s, *, target=None, frame=None):
        return -torch.ones_like(y)


@mutant("V1")
class TransportChangesTheType(TuckerManifold):
    def transp(self, x, y, v, *, target=None, frame=None):
        return super().transp(x, y, v, target=target).double()


@mutant("V3")
class SquaresAreAveraged(TuckerManifold):
    def transp_squares(self, x, y, s, *, target=None, frame=None):
        return s.mean(-1, keepdim=True).expand_as(y).clone()


@mutant("Q8")
class SquaresOfAnotherRankAreNegative(TuckerManifold):
    def transp_squares(self, x, y, s, *, target=None, frame=None):
        moved = super().transp_squares(x, y, s, target=target)
        return moved if target is None else moved - s.amax()


# Batches and arguments -----------------------------------------------------------------------


@mutant("R8")
class RetractionDoesNotBroadcast(TuckerManifold):
    def retr(self, x, u, *, frame=None):
        if x.shape != u.shape:
            raise ValueError(f"the shapes {x.shape} and {u.shape} differ")
        return super().retr(x, u, frame=frame)


@mutant("R8")
class TransportDoesNotBroadcast(TuckerManifold):
    def transp(self, x, y, v, *, target=None, frame=None):
        if not x.shape[:-1] == y.shape[:-1] == v.shape[:-1]:
            raise ValueError("the batches differ")
        return super().transp(x, y, v, target=target, frame=frame)


@mutant("R8")
class TruncationTakesTheFirstPointOfABatch(TuckerManifold):
    def truncation(self, x, u=None, *, frame=None):
        if u is not None and u.ndim > x.ndim:
            u = u.reshape(-1, self.size)[:1].expand(u.shape)
        return super().truncation(x, u, frame=frame)


@mutant("R8")
class ProjxWritesIntoItsArgument(TuckerManifold):
    def projx(self, x):
        return x.copy_(super().projx(x))


@mutant("R8")
class GradientUsesUpItsArgument(TuckerManifold):
    def egrad2rgrad(self, x, u, *, frame=None):
        gradient = super().egrad2rgrad(x, u, frame=frame)
        u.zero_()
        return gradient


@mutant("R8")
class RetractionMovesThePointItself(TuckerManifold):
    def retr(self, x, u, *, frame=None):
        y = super().retr(x, u, frame=frame)
        return x.copy_(y) if x.shape == y.shape else y


# Spectra and adaptive truncation -------------------------------------------------------------


class Spectra(TuckerManifold):
    """Where mutants change the singular values that policies read."""

    def read(self, values, sum):
        return values

    def truncation(self, x, u=None, *, frame=None):
        truncation = super().truncation(x, u, frame=frame)
        truncation.singular_values = tuple(self.read(v, u is not None) for v in truncation.singular_values)
        return truncation


@mutant("R6")
class SpectraAreScaled(Spectra):
    def read(self, values, sum):
        return 7 * values


@mutant("R6")
@mutant("Q3")
class SpectraOfSumsAreRoots(Spectra):
    def read(self, values, sum):
        return values.sqrt() if sum else values


@mutant("R6")
@mutant("Q2")
class SpectraOfSumsAreFourthPowers(Spectra):
    def read(self, values, sum):
        return values**4 if sum else values


@mutant("R6")
class SingularValuesAreScaled(TuckerManifold):
    def singular_values(self, x):
        return tuple(7 * values for values in super().singular_values(x))


class Adaptive(TuckerManifold):
    """Where mutants change what the adaptive retraction and the approximation take."""

    def limits(self, limits):
        return limits

    def step(self, u, tol):
        return u, tol

    def retr_adaptive(self, x, u, *, tol=0.0, **limits):
        u, tol = self.step(u, tol)
        return super().retr_adaptive(x, u, tol=tol, **self.limits(limits))

    def approximate(self, tensor, *, tol=0.0, **limits):
        return super().approximate(tensor, tol=tol, **self.limits(limits))


@mutant("Q2")
class AdaptiveStepIsForgotten(Adaptive):
    def step(self, u, tol):
        return (u if tol == 0 else 0 * u), tol


@mutant("Q2")
class AdaptiveToleranceIsTenfold(Adaptive):
    def step(self, u, tol):
        return u, min(0.99, 10 * tol)


@mutant("Q3")
class AdaptiveToleranceIsIgnored(Adaptive):
    def step(self, u, tol):
        return u, 0.0


@mutant("Q6")
class AdaptiveLimitsAreIgnored(Adaptive):
    def limits(self, limits):
        return {}


@mutant("Q6")
class ApproximationIgnoresItsMaximum(TuckerManifold):
    def approximate(self, tensor, *, tol=0.0, min_rank=None, max_rank=None):
        return super().approximate(tensor, tol=tol, min_rank=min_rank)


@mutant("Q6")
class MaximaOfTheirOwnAreIgnored(TuckerManifold):
    def truncate(self, x, *, tol=0.0, min_rank=None, max_rank=None):
        maximum = max_rank if isinstance(max_rank, int) else None
        return super().truncate(x, tol=tol, min_rank=min_rank, max_rank=maximum)
