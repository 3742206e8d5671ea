"""Mutants of retractions, transports, gradients and truncations."""

import torch

from tenfold.linalg import mode_product, qr, unfold
from tenfold.manifolds import FixedRankManifold, TensorTrainManifold, TuckerManifold

from .mutants import blocks_of, mutant


def by_factors(manifold, x, u):
    """``(C + dC) x_i (U_i + D_i S_i^{-T})``: agrees with ``x + u`` to first order only."""
    upper = manifold.frame(x).upper
    factors, blocks = blocks_of(manifold, x, u)
    factors[0] = factors[0] + blocks[0]
    for v in range(1, len(factors)):
        solved = torch.linalg.solve_triangular(upper[v].mT, blocks[v], upper=False, left=False)
        factors[v] = factors[v] + solved
    return manifold.pack_point(*factors)


@mutant("R1")
class RetractionJumpsBetweenGauges(TuckerManifold):
    """QR with the signs as LAPACK leaves them."""

    def retr(self, x, u, *, frame=None):
        core, first, *rest = blocks_of(self, super().retr(x, u))
        return self.pack_point(-core, -first, *rest)


@mutant("R1")
class RetractionInSinglePrecision(TuckerManifold):
    def retr(self, x, u, *, frame=None):
        return super().retr(x.float(), u.float()).to(x)


@mutant("R2")
class RetractionLeavesTheManifold(TuckerManifold):
    def retr(self, x, u, *, frame=None):
        return by_factors(self, x, u)


@mutant("R2", (5, 4), 2)
class RetractionLosesRank(FixedRankManifold):
    def retr(self, x, u, *, frame=None):
        core, *rest = blocks_of(self, super().retr(x, u))
        keep = torch.ones_like(core)
        keep[..., -1, :] = 0.0
        return self.pack_point(core * keep, *rest)


@mutant("R3")
class RetractionGoesTwiceAsFar(TuckerManifold):
    def retr(self, x, u, *, frame=None):
        return super().retr(x, 2 * u)


@mutant("R3")
class RetractionMovesTheCoreOnly(TuckerManifold):
    def retr(self, x, u, *, frame=None):
        return x + self.radial(u)


@mutant("R4")
class FirstOrderClaimedSecond(TuckerManifold):
    def retr(self, x, u, *, frame=None):
        return self.projx(by_factors(self, x, u))


@mutant("R5")
class TruncatesAFirstOrderPoint(TuckerManifold):
    def truncation(self, x, u=None, *, frame=None):
        return super().truncation(x if u is None else self.projx(by_factors(self, x, u)))


@mutant("R6", (3, 4, 3, 2), (2, 3, 2))
class TruncatesTheRetractedPoint(TensorTrainManifold):
    def truncation(self, x, u=None, *, frame=None):
        return super().truncation(x if u is None else self.retr(x, u))


@mutant("R7")
class NormOverflows(TuckerManifold):
    def retr(self, x, u, *, frame=None):
        length = u.square().sum(-1, keepdim=True).sqrt()
        return super().retr(x, length * (u / length))


@mutant("R7")
class GradientWithoutFloor(TuckerManifold):
    def egrad2rgrad(self, x, u, *, frame=None):
        grads, upper = blocks_of(self, u), self.frame(x).upper
        grads[1:] = [
            torch.linalg.solve_triangular(upper[v], grad, upper=True, left=False)
            for v, grad in enumerate(grads)
            if v
        ]
        return self.proju(x, self.pack_point(*grads))


@mutant("R8")
class BatchSharesOneFrame(TuckerManifold):
    def egrad2rgrad(self, x, u, *, frame=None):
        first = x.reshape(-1, self.size)[:1].expand(x.shape)
        return self.proju(x, super().egrad2rgrad(first, u))


@mutant("R8")
class BatchIsLost(TuckerManifold):
    def retr(self, x, u, *, frame=None):
        return super().retr(x, u.reshape(-1, self.size)[:1].expand(u.shape))


@mutant("R9", (6, 5), 3)
class OrthonormalisesThroughTheGram(FixedRankManifold):
    def retr(self, x, u, *, frame=None):
        core, left, right = blocks_of(self, super().retr(x, u))
        columns = left @ core
        values, vectors = torch.linalg.eigh(columns.mT @ columns)
        scale = values.clamp(min=torch.finfo(x.dtype).tiny).rsqrt()
        basis = columns @ (vectors * scale.unsqueeze(-2)) @ vectors.mT
        return self.pack_point(basis.mT @ columns, basis, right)


@mutant("V1")
class TransportDoesNothing(TuckerManifold):
    def transp(self, x, y, v, *, target=None, frame=None):
        return v.clone()


@mutant("V2")
class TransportKeepsLengths(TuckerManifold):
    def transp(self, x, y, v, *, target=None, frame=None):
        moved = super().transp(x, y, v, target=target)
        return moved * v.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True)


@mutant("V3")
class TransportShrinks(TuckerManifold):
    def transp(self, x, y, v, *, target=None, frame=None):
        return 0.99 * super().transp(x, y, v, target=target)


@mutant("V4")
class TransportProjectsCoordinates(TuckerManifold):
    """``proju`` of the old coordinates: tangent, linear, the identity at ``x``, and wrong."""

    def transp(self, x, y, v, *, target=None, frame=None):
        return self.proju(y, v)


@mutant("V5")
class TransportStretches(TuckerManifold):
    def transp(self, x, y, v, *, target=None, frame=None):
        return 1.5 * super().transp(x, y, v, target=target)


@mutant("V6")
class TransportResets(TuckerManifold):
    def transp(self, x, y, v, *, target=None, frame=None):
        return torch.zeros_like(y)


@mutant("V7")
class FusedTransportForgets(TuckerManifold):
    def retr_transp(self, x, u, v, *, frame=None):
        y = self.retr(x, u)
        return y, self.proju(y, v)


@mutant("G1")
class GradientWithoutTheCore(TuckerManifold):
    """Takes the projected gradient of the factors for coordinates."""

    def egrad2rgrad(self, x, u, *, frame=None):
        return self.proju(x, u)


def pseudo_svd_gradient(manifold, x, u):
    """Differences of squared singular values in a denominator, as in the derivative of an SVD."""
    squares = manifold.frame(x).upper[1].square().sum(-2)
    gaps = squares.unsqueeze(-1) - squares.unsqueeze(-2)
    off = ~torch.eye(squares.shape[-1], dtype=torch.bool)
    return (gaps / gaps)[..., off].sum(-1, keepdim=True) * u / off.sum()


@mutant("G1", (4, 4, 4), (2, 2, 2))
class GradientIsNaNAtEqualSingularValues(TuckerManifold):
    def egrad2rgrad(self, x, u, *, frame=None):
        return pseudo_svd_gradient(self, x, super().egrad2rgrad(x, u))


@mutant("G2")
class GradientIsHalved(TuckerManifold):
    def egrad2rgrad(self, x, u, *, frame=None):
        return 0.5 * super().egrad2rgrad(x, u)


@mutant("G3")
class GradientIsNotProjected(TuckerManifold):
    def egrad2rgrad(self, x, u, *, frame=None):
        grads, upper = blocks_of(self, u), self.frame(x).upper
        for v in range(1, len(grads)):
            grads[v] = torch.linalg.solve_triangular(upper[v], grads[v], upper=True, left=False)
        return self.pack_point(*grads)


@mutant("G4")
class GradientDependsOnTheGauge(TuckerManifold):
    def egrad2rgrad(self, x, u, *, frame=None):
        core, first, *rest = blocks_of(self, super().egrad2rgrad(x, u))
        return self.pack_point(core, first * torch.linspace(1.0, 0.5, first.shape[-1]).to(first), *rest)


@mutant("G5", (6, 5), 3)
class GradientInvertsTheGram(FixedRankManifold):
    """``g (M M^T)^{-1} S``: exact in exact arithmetic, with the square of the condition number otherwise."""

    def egrad2rgrad(self, x, u, *, frame=None):
        (core, *_), grads, upper = *blocks_of(self, x, u), self.frame(x).upper
        for v in (1, 2):
            rows = unfold(core, v - 1, 2)
            grads[v] = grads[v] @ torch.linalg.inv(rows @ rows.mT) @ upper[v].mT
        return self.proju(x, self.pack_point(*grads))


@mutant("G6", (24, 24, 24), (2, 2, 2))
class GradientThroughTheDenseTensor(TuckerManifold):
    def egrad2rgrad(self, x, u, *, frame=None):
        return self.project_dense(x, self.tangent_to_dense(x, super().egrad2rgrad(x, u)))


@mutant("G6", (24, 24, 24), (2, 2, 2))
class TruncatesTheDenseTensor(TuckerManifold):
    def truncation(self, x, u=None, *, frame=None):
        return super().truncation(self.from_dense(self.to_dense(x)), u)

    def from_dense(self, tensor):
        manifold, x = self._exact(tensor)
        return TuckerManifold.truncation(manifold, x).to(self.rank)[1]


@mutant("G7")
class DenseIsDetached(TuckerManifold):
    def to_dense(self, x):
        core, first, *rest = blocks_of(self, x)
        return super().to_dense(self.pack_point(core, first.detach(), *rest))


@mutant("G8")
class GradientDecaysTheWeight(TuckerManifold):
    def egrad2rgrad(self, x, u, *, frame=None):
        return super().egrad2rgrad(x, u) + 1e-3 * self.radial(x)


@mutant("Q1")
class FromDenseTruncatesOneMoreRank(TuckerManifold):
    def from_dense(self, tensor):
        core, *rest = blocks_of(self, super().from_dense(tensor))
        keep = torch.ones_like(core)
        keep[..., -1, :, :] = 0.0
        return self.pack_point(core * keep, *rest)


class Policy(TuckerManifold):
    """Where mutants change what the tolerance means."""

    def tolerance(self, tol):
        return tol

    def limits(self, limits):
        return limits

    def truncate(self, x, *, tol=0.0, **limits):
        return super().truncate(x, tol=self.tolerance(tol), **self.limits(limits))

    def approximate(self, tensor, *, tol=0.0, **limits):
        self._check_dense(tensor)
        manifold, x = self._exact(tensor)
        return manifold.truncate(x, tol=tol, **limits)

    def retr_adaptive(self, x, u, *, tol=0.0, **limits):
        return super().retr_adaptive(x, u, tol=self.tolerance(tol), **self.limits(limits))


@mutant("Q2")
class TruncatesTenfold(Policy):
    def tolerance(self, tol):
        return min(10 * tol, 0.99)


@mutant("Q3")
class KeepsOneRankTooMany(Policy):
    def truncate(self, x, *, tol=0.0, **limits):
        spectra = self.truncation(x)
        ranks = super().truncate(x, tol=tol, **limits)[0].rank
        available = [values.shape[-1] for values in spectra.singular_values]
        return spectra.to([min(r + 1, n) for r, n in zip(ranks, available, strict=True)])


@mutant("Q3")
class ToleranceIsShared(Policy):
    """Divides the tolerance among the ranks, as if the bound had to hold without the root of their number."""

    def tolerance(self, tol):
        return tol / len(self.shape)


@mutant("Q4")
class RoundingCountsAsRank(Policy):
    def truncate(self, x, *, tol=0.0, **limits):
        if tol > 0:
            return super().truncate(x, tol=tol, **limits)
        return self.truncation(x).to(self.rank)


@mutant("Q5")
class LargeTolerancesAreIgnored(Policy):
    def tolerance(self, tol):
        return 0.0 if tol > 0.3 else tol


@mutant("Q5", (5, 5, 5), (3, 3, 3))
class TruncationTurnsTheTensor(Policy):
    def truncate(self, x, *, tol=0.0, **limits):
        manifold, y = super().truncate(x, tol=tol, **limits)
        core, first, *rest = blocks_of(manifold, y)
        turn, _ = qr(torch.eye(first.shape[-1]).to(core) + 0.1 * torch.ones(first.shape[-1], 1).to(core))
        return manifold, manifold.pack_point(
            mode_product(core, turn, 0, core.ndim - y.ndim + 1), first, *rest
        )


@mutant("Q6")
class LimitsAreIgnored(Policy):
    def limits(self, limits):
        return {}


@mutant("Q6")
class MinimumIsIgnored(Policy):
    def limits(self, limits):
        return {name: limit for name, limit in limits.items() if name != "min_rank"}


@mutant("Q7")
class RanksNeverGrow(TuckerManifold):
    def retr_adaptive(self, x, u, *, tol=0.0, **limits):
        return super().retr_adaptive(x, u, tol=tol, max_rank=self.rank)


@mutant("Q8")
class RankChangeCutsCoordinates(TuckerManifold):
    """Carries a vector to another rank by cutting or padding its blocks."""

    def transp(self, x, y, v, *, target=None, frame=None):
        if target is None:
            return super().transp(x, y, v)
        blocks = []
        for block, shape in zip(blocks_of(self, v), target.factor_shapes, strict=True):
            fitted = block.new_zeros(*v.shape[:-1], *shape)
            common = (..., *(slice(min(a, b)) for a, b in zip(block.shape[v.ndim - 1 :], shape, strict=True)))
            fitted[common] = block[common]
            blocks.append(fitted)
        return target.proju(y, target.pack_point(*blocks))
