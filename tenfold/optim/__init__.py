"""Optimizers that move along manifolds and adapt ranks."""

from tenfold.optim.adam import RiemannianAdam, RiemannianAdamW, SecondMoment
from tenfold.optim.base import RiemannianOptimizer
from tenfold.optim.clipping import clip_riemannian_norm_
from tenfold.optim.conjugate_gradient import RiemannianCG
from tenfold.optim.deterministic import LineSearchOptimizer
from tenfold.optim.finite import IllConditionedWarning
from tenfold.optim.guard import OnNonFinite, StepGuard, StepOutcome
from tenfold.optim.lbfgs import RiemannianLBFGS
from tenfold.optim.line_search import Trial, WolfeSearch
from tenfold.optim.line_search_report import LineSearchReport, Outcome
from tenfold.optim.muon import TangentMuon
from tenfold.optim.rank_adaptation import EnergyAdaptation, RankAdaptation
from tenfold.optim.rank_budget import BudgetAdaptation
from tenfold.optim.rank_policy import Pending, RankPolicy
from tenfold.optim.sgd import RiemannianSGD
from tenfold.optim.tdlrt import TDLRT, Integrator, TDLRTAdamW, TDLRTMuon

__all__ = [
    "TDLRT",
    "BudgetAdaptation",
    "EnergyAdaptation",
    "IllConditionedWarning",
    "Integrator",
    "LineSearchOptimizer",
    "LineSearchReport",
    "OnNonFinite",
    "Outcome",
    "Pending",
    "RankAdaptation",
    "RankPolicy",
    "RiemannianAdam",
    "RiemannianAdamW",
    "RiemannianCG",
    "RiemannianLBFGS",
    "RiemannianOptimizer",
    "RiemannianSGD",
    "SecondMoment",
    "StepGuard",
    "StepOutcome",
    "TDLRTAdamW",
    "TDLRTMuon",
    "TangentMuon",
    "Trial",
    "WolfeSearch",
    "clip_riemannian_norm_",
]
