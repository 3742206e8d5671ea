"""Optimizers that move along manifolds and adapt ranks."""

from tenfold.optim.adam import RiemannianAdam, RiemannianAdamW, SecondMoment
from tenfold.optim.base import IllConditionedWarning, RiemannianOptimizer
from tenfold.optim.rank_adaptation import RankAdaptation
from tenfold.optim.sgd import RiemannianSGD

__all__ = [
    "IllConditionedWarning",
    "RankAdaptation",
    "RiemannianAdam",
    "RiemannianAdamW",
    "RiemannianOptimizer",
    "RiemannianSGD",
    "SecondMoment",
]
