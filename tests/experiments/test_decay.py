import math

import pytest
import torch
from torch import nn

from tenfold.experiments.decay import decay_singular_values_, profile
from tenfold.experiments.loose import loosen
from tenfold.nn import TuckerConv2d, TuckerLinear


def unfolded_spectra(weight, modes):
    return [torch.linalg.svdvals(weight.double().movedim(m, 0).flatten(1)) for m in modes]


@pytest.mark.parametrize("decay", [1.0, 1.5, 4.0])
@pytest.mark.parametrize(
    "layer", [TuckerConv2d(6, 16, 5, rank=0.5), TuckerLinear(40, 30, rank=6)], ids=["conv", "linear"]
)
def test_singular_values_decay_in_every_mode(layer, decay):
    torch.manual_seed(0)
    before = layer.dense_weight().norm()
    decay_singular_values_(layer, decay)
    torch.testing.assert_close(layer.dense_weight().norm(), before)
    for rank, spectrum in zip(layer.rank, unfolded_spectra(layer.dense_weight(), (0, 1)), strict=True):
        expected = profile(rank, decay)
        torch.testing.assert_close(
            spectrum[:rank] / spectrum.norm(), expected / expected.norm(), rtol=0.02, atol=1e-7
        )


def test_the_profile_has_a_floor():
    assert profile(3, 10.0).tolist() == pytest.approx([1, 0.1, 0.01])
    assert profile(100, 10.0).min() == 1e-12


def test_tiny_singular_values_survive_single_precision():
    torch.manual_seed(0)
    layer = TuckerConv2d(16, 16, 3, rank=10)
    decay_singular_values_(layer, 10.0)
    core = layer.manifold.unpack_tensor(layer.weight)[0].detach().double()
    spectrum = torch.linalg.svdvals(core.flatten(1))
    assert math.log10(spectrum[0] / spectrum[-1]) == pytest.approx(9, abs=0.3)


@pytest.mark.parametrize(
    ("method", "layer"), [("loose-matrix", nn.Linear(60, 50)), ("loose-tt", nn.Conv2d(8, 16, 3))]
)
def test_the_other_formats_decay_too(method, layer):
    torch.manual_seed(0)
    spectra = []
    for decay in (1.0, 3.0):
        model = nn.Sequential(layer)
        loosen(model, method, {"0": 5}, decay)
        spectra.append(unfolded_spectra(model[0].dense_weight(), (0,))[0][:5])
    flat, steep = ((s[0] / s[4]).log().item() for s in spectra)
    assert steep - flat == pytest.approx(4 * math.log(3.0), abs=1.5)


def test_the_terms_of_a_cp_sum_decay():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(64, 64, 3))
    loosen(model, "loose-cp", {"0": 6}, 2.0)
    norms = torch.stack([factor.detach().norm(dim=0) for factor in model[0].factors]).prod(0)
    assert (norms[0] / norms[5]).log2().item() == pytest.approx(5, abs=2)
    assert norms[0] > norms[3] > norms[5]
