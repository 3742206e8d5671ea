"""Layers whose weights live on low-rank manifolds, and how to put any model on them."""

from geoopt import ManifoldParameter

from tenfold.nn import adapters as adapters
from tenfold.nn.attention import MultiheadAttention
from tenfold.nn.averaging import AveragedModel
from tenfold.nn.contraction import contract
from tenfold.nn.conv import Conv1d, Conv2d, Conv3d, TuckerConv2d
from tenfold.nn.conv_transpose import ConvTranspose2d
from tenfold.nn.convert import Start, densify, factorize
from tenfold.nn.convolution import Convolution
from tenfold.nn.embedding import Embedding
from tenfold.nn.formats import Format
from tenfold.nn.fusion import fuse_normalization
from tenfold.nn.layer import LowRankLayer
from tenfold.nn.layout import Layout
from tenfold.nn.linear import Linear, TuckerLinear
from tenfold.nn.named_factors import factor_state_dict, load_factor_state_dict
from tenfold.nn.parameter import declare, low_rank_parameters
from tenfold.nn.recompute import recompute_activations
from tenfold.nn.report import FactorizationReport, FactorizedLayer
from tenfold.nn.stages import Stage
from tenfold.unchanged import unchanged_on_error

__all__ = [
    "AveragedModel",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose2d",
    "Convolution",
    "Embedding",
    "FactorizationReport",
    "FactorizedLayer",
    "Format",
    "Layout",
    "Linear",
    "LowRankLayer",
    "ManifoldParameter",
    "MultiheadAttention",
    "Stage",
    "Start",
    "TuckerConv2d",
    "TuckerLinear",
    "contract",
    "declare",
    "densify",
    "factor_state_dict",
    "factorize",
    "fuse_normalization",
    "load_factor_state_dict",
    "low_rank_parameters",
    "recompute_activations",
    "unchanged_on_error",
]
