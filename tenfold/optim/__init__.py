"""Optimizers that move along manifolds and adapt ranks."""

from tenfold.optim.base import RiemannianOptimizer
from tenfold.optim.rank_adaptation import RankAdaptation
from tenfold.optim.sgd import RiemannianSGD

__all__ = ["RankAdaptation", "RiemannianOptimizer", "RiemannianSGD"]
