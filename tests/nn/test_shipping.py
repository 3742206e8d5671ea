"""The support matrix: every layer in every format, and everything that is done with a layer."""

from pathlib import Path

import pytest
import torch

from tenfold.nn import Conv2d, Linear, factor_state_dict, load_factor_state_dict
from tests.nn.support import LAYERS, NAMES, OPERATIONS, UNSUPPORTED, onnx, table


def _matrix(operations):
    for operation in operations:
        for name in LAYERS:
            reason = UNSUPPORTED.get((name.partition("-")[0], operation))
            marks = [] if reason is None else [pytest.mark.xfail(reason=reason, strict=True)]
            yield pytest.param(operation, name, marks=marks)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxscript", "ignore::DeprecationWarning:torch.onnx")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:copyreg", "ignore::FutureWarning")
@pytest.mark.parametrize(("operation", "name"), list(_matrix(OPERATIONS)))
def test_support(operation, name, tmp_path):
    run = OPERATIONS[operation]
    run(LAYERS[name], tmp_path) if run is onnx else run(LAYERS[name])


def test_the_matrix_is_that_of_the_documentation():
    assert {name.partition("-")[0] for name in LAYERS} == set(NAMES)
    page = Path(__file__).parents[2] / "docs" / "layers.md"
    assert table() in page.read_text()


def test_the_names_of_factors_are_those_of_the_formats():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        Linear(6, 4, rank=2),
        Conv2d(4, 5, 3, rank=2, modes=(0, 2)),
        Linear(6, 4, rank=2, format="tensor-train"),
        torch.nn.Linear(3, 2),
    )
    model[1].again = model[0]
    assert set(factor_state_dict(model)) == {
        *(f"0.weight.{part}" for part in "SUV"),
        *(f"1.again.weight.{part}" for part in "SUV"),
        *(f"1.weight.{part}" for part in ("core", "U0", "U2")),
        *(f"2.weight.{part}" for part in ("G1", "G2")),
        *("0.bias", "1.bias", "1.again.bias", "2.bias", "3.weight", "3.bias"),
    }


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda state: state.pop("weight.S"), ValueError, r"no 'weight.S', a factor of 'weight'"),
        (lambda state: state.update({"weight.U": torch.zeros(5, 2)}), ValueError, r"weight: factor 1"),
        (lambda state: state.update({"weight.U": torch.zeros(())}), ValueError, "does not fit"),
        (lambda state: state.update({"weight.S": torch.zeros(2, 3)}), ValueError, "weight"),
        (lambda state: state.update({"other": torch.zeros(1)}), RuntimeError, "other"),
    ],
)
def test_factors_that_do_not_fit_change_nothing(change, error, message):
    layer = Linear(6, 4, rank=1)
    before = layer.weight.detach().clone()
    state = factor_state_dict(Linear(6, 4, rank=2))
    change(state)
    with pytest.raises(error, match=message):
        load_factor_state_dict(layer, state)
    if error is ValueError:
        assert torch.equal(layer.weight, before)
