"""Layers whose weights live on low-rank manifolds, and how to put any model on them."""

from geoopt import ManifoldParameter

from tenfold.nn.conv import TuckerConv2d
from tenfold.nn.convert import FactorizationReport, FactorizedLayer, Start, factorize
from tenfold.nn.layer import LowRankLayer
from tenfold.nn.linear import TuckerLinear
from tenfold.nn.parameter import declare, low_rank_parameters

__all__ = [
    "FactorizationReport",
    "FactorizedLayer",
    "LowRankLayer",
    "ManifoldParameter",
    "Start",
    "TuckerConv2d",
    "TuckerLinear",
    "declare",
    "factorize",
    "low_rank_parameters",
]
