"""Manifolds of low-rank tensors behind one contract."""

from tenfold.manifolds.base import LowRankManifold
from tenfold.manifolds.fixed_rank import FixedRankManifold
from tenfold.manifolds.hierarchical_tucker import HierarchicalTuckerManifold
from tenfold.manifolds.parameter import is_low_rank, move_
from tenfold.manifolds.tensor_train import TensorTrainManifold
from tenfold.manifolds.tree import Node, TensorTree
from tenfold.manifolds.tree_manifold import TreeManifold
from tenfold.manifolds.truncation import Truncation, rank_tuple, ranks_by_tolerance
from tenfold.manifolds.tucker import TuckerManifold

__all__ = [
    "FixedRankManifold",
    "HierarchicalTuckerManifold",
    "LowRankManifold",
    "Node",
    "TensorTrainManifold",
    "TensorTree",
    "TreeManifold",
    "Truncation",
    "TuckerManifold",
    "is_low_rank",
    "move_",
    "rank_tuple",
    "ranks_by_tolerance",
]
