"""Optimizers that move along manifolds and adapt ranks."""

from tenfold.optim.adam import RiemannianAdam, RiemannianAdamW, SecondMoment
from tenfold.optim.base import IllConditionedWarning, RiemannianOptimizer
from tenfold.optim.rank_adaptation import EnergyAdaptation, RankAdaptation
from tenfold.optim.rank_budget import BudgetAdaptation
from tenfold.optim.rank_policy import Pending, RankPolicy
from tenfold.optim.sgd import RiemannianSGD

__all__ = [
    "BudgetAdaptation",
    "EnergyAdaptation",
    "IllConditionedWarning",
    "Pending",
    "RankAdaptation",
    "RankPolicy",
    "RiemannianAdam",
    "RiemannianAdamW",
    "RiemannianOptimizer",
    "RiemannianSGD",
    "SecondMoment",
]
