"""Layers whose weights live on low-rank manifolds, and how to put any model on them."""

from geoopt import ManifoldParameter

from tenfold.nn.contraction import contract
from tenfold.nn.conv import Conv1d, Conv2d, Conv3d, TuckerConv2d
from tenfold.nn.conv_transpose import ConvTranspose2d
from tenfold.nn.convert import FactorizationReport, FactorizedLayer, Start, factorize
from tenfold.nn.embedding import Embedding
from tenfold.nn.formats import Format
from tenfold.nn.layer import LowRankLayer
from tenfold.nn.linear import Linear, TuckerLinear
from tenfold.nn.parameter import declare, low_rank_parameters

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose2d",
    "Embedding",
    "FactorizationReport",
    "FactorizedLayer",
    "Format",
    "Linear",
    "LowRankLayer",
    "ManifoldParameter",
    "Start",
    "TuckerConv2d",
    "TuckerLinear",
    "contract",
    "declare",
    "factorize",
    "low_rank_parameters",
]
