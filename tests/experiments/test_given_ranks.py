"""Ranks that are given layer by layer."""

import pytest

from tenfold.experiments.data import load
from tenfold.experiments.given_ranks import parse_ranks, ranks_of_layers
from tenfold.experiments.methods import make_network


def test_the_notation():
    assert parse_ranks("conv2=5x3, fc1=4,layer1.0.conv1=2x1x2") == {
        "conv2": (5, 3),
        "fc1": 4,
        "layer1.0.conv1": (2, 1, 2),
    }


@pytest.mark.parametrize(
    "text", ["", "conv2", "conv2=", "conv2=0", "conv2=3x", "conv2=3.5", "=3", "fc1=3,", "fc1=３"]
)
def test_what_is_not_in_it(text):
    with pytest.raises(ValueError, match="ranks must be given as"):
        parse_ranks(text)


def test_every_layer_once():
    with pytest.raises(ValueError, match="'fc1' twice"):
        parse_ranks("fc1=3,fc1=3")
    with pytest.raises(ValueError, match="layers fc1, fc2: 'fc2' is missing or unknown"):
        ranks_of_layers("fc1=3", ["fc1", "fc2"])
    with pytest.raises(ValueError, match="layers fc1: 'fc3' is missing or unknown"):
        ranks_of_layers("fc1=3,fc3=2", ["fc1"])


@pytest.mark.parametrize(
    ("method", "convolution"), [("tucker", "5x3"), ("loose-tucker", "5x3"), ("loose-tt", "5x4x3")]
)
def test_the_network_has_them(tiny, method, convolution):
    linear = "7x7" if "tucker" in method else "7"
    given = f"conv2={convolution},fc1={linear},fc2=90"
    config = tiny(method=method, ranks=given, tau=None)
    model = make_network(config, load("mnist", config.data_dir))
    found = ["x".join(map(str, model.get_submodule(name).rank)) for name in ("conv2", "fc1")]
    assert found == [convolution, linear]
    assert set(model.fc2.rank) == {84}  # a number alone is lowered to what is feasible


@pytest.mark.parametrize(
    ("method", "message"),
    [("tucker", "rank"), ("loose-tt", "has ranks up to"), ("loose-cp", "has ranks up to")],
)
@pytest.mark.parametrize("ranks", ["17x7x9", "17x7"])
def test_ranks_that_a_layer_does_not_have(tiny, method, message, ranks):
    config = tiny(method=method, ranks=f"conv2={ranks},fc1=3,fc2=3", tau=None)
    with pytest.raises(ValueError, match=message):
        make_network(config, load("mnist", config.data_dir))
