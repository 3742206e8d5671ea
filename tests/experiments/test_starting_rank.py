import math

import pytest

from tenfold.experiments.combinations import METHODS, is_pruned
from tenfold.experiments.compression import Compression
from tenfold.experiments.data import load
from tenfold.experiments.loose_layer import LooseLayer
from tenfold.experiments.methods import make_network
from tenfold.experiments.starting_rank import rank_for_compression, stored_numel
from tenfold.nn import LowRankLayer

FACTORED = [m for m in METHODS if m != "dense" and not is_pruned(m)]
LENET = [(16, 6, 5, 5), (120, 400), (84, 120)]


@pytest.mark.parametrize("method", FACTORED)
@pytest.mark.parametrize("compression", [0.5, 0.8, 0.95])
def test_the_network_has_the_compression(tiny, method, compression):
    config = tiny(method=method, compression=compression)
    reached = Compression.of(make_network(config, load("mnist", config.data_dir))).factored
    assert compression <= reached < compression + 0.02


@pytest.mark.parametrize("method", FACTORED)
def test_every_layer_has_the_compression_by_itself(tiny, method):
    config = tiny(method=method, compression=0.8, per_layer=True)
    model = make_network(config, load("mnist", config.data_dir))
    factored = [layer for layer in model.modules() if isinstance(layer, LowRankLayer | LooseLayer)]
    assert len(factored) == len(LENET)
    for layer, shape in zip(factored, LENET, strict=True):
        stored = sum(p.numel() for p in layer.parameters() if p is not layer.bias)
        rank = rank_for_compression(method, [shape], 0.8)
        assert stored == stored_numel(method, shape, rank) <= 0.2 * math.prod(shape)


def test_every_layer_starts_at_the_compression_that_falls(tiny):
    config = tiny(compression=0.9, start_compression=0.5, per_layer=True)
    model = make_network(config, load("mnist", config.data_dir))
    found = [layer.compression for layer in model.modules() if isinstance(layer, LowRankLayer)]
    assert all(0.5 <= compression < 0.6 for compression in found)


@pytest.mark.parametrize("method", FACTORED)
def test_it_is_the_largest_rank(method):
    rank = rank_for_compression(method, LENET, 0.8)
    budget = 0.2 * 60_480
    assert sum(stored_numel(method, shape, rank) for shape in LENET) <= budget
    assert sum(stored_numel(method, shape, rank * 1.0001) for shape in LENET) > budget


def test_a_compression_out_of_reach():
    with pytest.raises(
        ValueError, match=r"0\.999 is out of reach of the method 'tucker': at rank 1 it is 0\.98"
    ):
        rank_for_compression("tucker", LENET, 0.999)
