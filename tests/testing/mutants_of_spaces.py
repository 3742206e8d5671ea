"""Mutants of points, tangent spaces, projections and metrics."""

import torch

from tenfold.manifolds import FixedRankManifold, TensorTrainManifold, TensorTree, TreeManifold, TuckerManifold

from .mutants import blocks_of, mutant


@mutant("P1")
class RandomWithoutOrthonormalFactors(TuckerManifold):
    def random(self, *size, dtype=None, device=None, generator=None):
        return torch.randn(*(size or (self.size,)), dtype=dtype, device=device, generator=generator)


@mutant("P1")
class RandomIgnoresItsGenerator(TuckerManifold):
    def random(self, *size, generator=None, **kwargs):
        return super().random(*size, **kwargs)


@mutant("P1")
class RandomIgnoresItsType(TuckerManifold):
    def random(self, *size, dtype=None, **kwargs):
        return super().random(*size, dtype=torch.float32, **kwargs)


@mutant("P2")
class ProjxLosesTheTriangularFactor(TuckerManifold):
    def projx(self, x):
        core = blocks_of(self, x)[0]
        return self.pack_point(core, *blocks_of(self, super().projx(x))[1:])


@mutant("P2")
class ProjxJumpsBetweenGauges(TuckerManifold):
    def projx(self, x):
        core, first, *rest = blocks_of(self, super().projx(x))
        return self.pack_point(-core, -first, *rest)


@mutant("P3")
class FromDenseShrinks(TuckerManifold):
    def from_dense(self, tensor):
        return super().from_dense(0.5 * tensor)


@mutant("P4")
class PackFlipsASign(TuckerManifold):
    def pack_point(self, *tensors):
        return super().pack_point(-tensors[0], *tensors[1:])


@mutant("P4")
class PackForgivesMissingFactors(TuckerManifold):
    def pack_point(self, *tensors):
        missing = self.factor_shapes[len(tensors) :]
        return super().pack_point(*tensors, *(torch.zeros(shape).to(tensors[0]) for shape in missing))


@mutant("P5")
class AcceptsNaN(TuckerManifold):
    def _check_point_on_manifold(self, x, *, atol=1e-5, rtol=1e-5):
        return super()._check_point_on_manifold(x.nan_to_num(), atol=atol, rtol=rtol)


@mutant("P5")
class AcceptsEverything(TuckerManifold):
    def _check_point_on_manifold(self, x, *, atol=1e-5, rtol=1e-5):
        return True, None


@mutant("P5")
class AcceptsEveryVector(TuckerManifold):
    def _check_vector_on_tangent(self, x, u, *, atol=1e-5, rtol=1e-5):
        return True, None


@mutant("P5")
class RejectsWithoutAReason(TuckerManifold):
    def _check_point_on_manifold(self, x, *, atol=1e-5, rtol=1e-5):
        return super()._check_point_on_manifold(x, atol=atol, rtol=rtol)[0], None


class LaxTree(TensorTree):
    """Ranks limited by the sides alone: forgets ``r_i <= product of the other ranks``."""

    def clip(self, shape, rank):
        return tuple(min(r, shape[self.nodes[v].modes[0]]) for v, r in enumerate(rank, start=1))


@mutant("P6", (6, 2, 2), (4, 2, 2))
class AcceptsInfeasibleRanks(TuckerManifold):
    def __init__(self, shape, rank):
        super().__init__(shape, (1,) * len(shape))
        TreeManifold.__init__(self, LaxTree(self.tree.nodes, 0), shape, rank)


@mutant("P6")
class AcceptsRankZero(TuckerManifold):
    def with_rank(self, rank):
        return super().with_rank(tuple(max(r, 1) for r in rank))


@mutant("T1")
class ProjuWithoutGauge(TuckerManifold):
    def proju(self, x, u):
        return u.clone()


@mutant("T1")
class ProjuRemovesTooLittle(TuckerManifold):
    def proju(self, x, u):
        return 0.999 * super().proju(x, u) + 0.001 * u


@mutant("T2")
class DimensionForgetsTheGauge(TuckerManifold):
    @property
    def dim(self):
        return self.size


@mutant("T2", (4, 3, 3, 2), (2, 2, 2))
class TrainDimensionCountsBoundaries(TensorTrainManifold):
    @property
    def dim(self):
        return super().dim - 1


@mutant("T3")
class CoordinatesOfFactors(TuckerManifold):
    """``D_i`` with the core itself for its surroundings: the usual first variation, which is no isometry."""

    def tangent_to_dense(self, x, u):
        upper, blocks = self.frame(x).upper, blocks_of(self, u)
        blocks[1:] = [block @ upper[v].mT for v, block in enumerate(blocks) if v]
        return super().tangent_to_dense(x, self.pack_point(*blocks))


@mutant("T3", (3, 3, 2, 3), (2, 2, 2, 2))
class OrderThreeHardCoded(TuckerManifold):
    def tangent_to_dense(self, x, u):
        blocks = blocks_of(self, u)
        blocks[4:] = [torch.zeros_like(block) for block in blocks[4:]]
        return super().tangent_to_dense(x, self.pack_point(*blocks))


@mutant("T4")
class RadialIsTheStoredPoint(TuckerManifold):
    def radial(self, x):
        return x.clone()


@mutant("T5")
class LongVectorsAreNotTangent(TuckerManifold):
    def _check_vector_on_tangent(self, x, u, *, atol=1e-5, rtol=1e-5):
        if u.norm(dim=-1).max() > 1.5:
            return False, "the vector is too long"
        return super()._check_vector_on_tangent(x, u, atol=atol, rtol=rtol)


@mutant("J1")
class ProjectionStretches(TuckerManifold):
    def project_dense(self, x, tensor):
        return 1.1 * super().project_dense(x, tensor)


@mutant("J1")
class ProjuDoubles(TuckerManifold):
    """What geoopt's ``CanonicalStiefel`` does to a part of the tangent space."""

    def proju(self, x, u):
        core, *blocks = blocks_of(self, super().proju(x, u))
        return self.pack_point(2 * core, *blocks)


@mutant("J2")
class ProjectionIsOblique(TuckerManifold):
    def project_dense(self, x, tensor):
        core, *blocks = blocks_of(self, super().project_dense(x, tensor))
        return self.pack_point(core.roll(1, -3), *blocks)


@mutant("J3")
class ProjectionClips(TuckerManifold):
    def project_dense(self, x, tensor):
        u = super().project_dense(x, tensor)
        return u * (0.5 / u.norm(dim=-1, keepdim=True)).clamp(max=1.0)


@mutant("J4")
class ProjectionDropsTheCore(TuckerManifold):
    def project_dense(self, x, tensor):
        core, *blocks = blocks_of(self, super().project_dense(x, tensor))
        return self.pack_point(torch.zeros_like(core), *blocks)


@mutant("J5", (5, 4), 2)
class ProjectionIsShort(FixedRankManifold):
    def project_dense(self, x, tensor):
        core, left, right = blocks_of(self, super().project_dense(x, tensor))
        return self.pack_point(core, 0.9 * left, 0.9 * right)


@mutant("J6")
class ProjectionForgetsTheGauge(TuckerManifold):
    """Applies the adjoint of ``tangent_to_dense`` without ``I - U U^T``."""

    def project_dense(self, x, tensor):
        batch = torch.broadcast_shapes(x.shape[:-1], tensor.shape[: -len(self.shape)])
        x = x.detach().expand(*batch, self.size)
        adjoint = torch.func.vjp(lambda u: self.tangent_to_dense(x, u), torch.zeros_like(x))[1]
        return adjoint(tensor.to(x).expand(*batch, *self.shape))[0]


@mutant("J7")
class FullRankHasNoTangents(TuckerManifold):
    def project_dense(self, x, tensor):
        u = super().project_dense(x, tensor)
        return torch.zeros_like(u) if self.rank == self.full_rank else u


@mutant("J8")
class ProjectionDependsOnTheGauge(TuckerManifold):
    def project_dense(self, x, tensor):
        core, first, *rest = blocks_of(self, super().project_dense(x, tensor))
        return self.pack_point(core, first * torch.linspace(1.0, 0.5, first.shape[-1]).to(first), *rest)


@mutant("M1")
class MetricIsNotSymmetric(TuckerManifold):
    def inner(self, x, u, v=None, *, keepdim=False):
        v = u if v is None else v
        return super().inner(x, u, v + 0.1 * v.roll(1, -1), keepdim=keepdim)


@mutant("M1")
class MetricBroadcastsTheBatch(TuckerManifold):
    """What geoopt's ``PoincareBall`` does without ``keepdim``."""

    def inner(self, x, u, v=None, *, keepdim=False):
        product = super().inner(x, u, v, keepdim=keepdim)
        return product * torch.ones_like(x[..., :1])


@mutant("M2")
class NormUsesTheWrongCore(TuckerManifold):
    def inner(self, x, u, v=None, *, keepdim=False):
        (core, *_), weight = blocks_of(self, u), torch.ones_like(u)
        weight[..., : core[(0,) * (u.ndim - 1)].numel()] = 1.5
        return super().inner(x, weight * u, u if v is None else v, keepdim=keepdim)


@mutant("M3")
class NormIsSquared(TuckerManifold):
    def norm(self, x, u, *, keepdim=False):
        return self.inner(x, u, keepdim=keepdim)


@mutant("M4")
class ComponentsAreMeans(TuckerManifold):
    def component_inner(self, x, u, v=None):
        return super().component_inner(x, u, v) / self.size
