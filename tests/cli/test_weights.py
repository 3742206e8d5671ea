"""``tenfold inspect`` and ``tenfold compress``."""

import pytest
import torch
from torch import nn

from tenfold.cli import main
from tenfold.cli.arguments import FORMATS
from tenfold.nn import Format, factorize, low_rank_parameters


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.Flatten(), nn.Sequential(nn.Linear(48, 24))
    )
    with torch.no_grad():
        model[3][0].weight.copy_(torch.randn(24, 2) @ torch.randn(2, 48))
    return model.eval()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"model": network().state_dict(), "epoch": 3}, path)
    return path


def test_the_formats_are_those_of_the_layers():
    assert list(FORMATS) == [form.value for form in Format]


def test_inspect_shows_ranks_and_conditions(file, capsys):
    assert main(["inspect", str(file), "--format", "fixed-rank", "--tol", "0.01"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0][:3] == ["weight", "shape", "unfolding"]
    assert [row[0] for row in rows[1:3]] == ["0", "3.0"]
    condition, *_, rank, saved = rows[2][5:]
    assert rank == "2"
    assert float(condition) < 10  # of the two singular values that are there
    assert saved == f"{1 - (2 * 72 + 4) / (24 * 48):.1%}"
    assert main(["inspect", str(file)]) == 0
    assert "12 | rest" in capsys.readouterr().out


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_compressed_file_loads_into_the_factorized_model(file, capsys, form, suffix):
    if suffix == ".safetensors":
        files = pytest.importorskip("safetensors.torch")
    out = file.with_name(f"small{suffix}")
    # A matrix of low rank need not be a Tensor Train of low rank.
    how = ["--rank", "1.0"] if form == "tensor-train" else ["--tol", "0.001"]
    assert main(["compress", str(file), "--format", form, *how, "--exclude", "0", "--out", str(out)]) == 0
    assert f"{out} is written" in capsys.readouterr().out
    state = torch.load(out, weights_only=True) if suffix == ".pt" else files.load_file(out)
    model, dense = network(), network()
    factorize(model, format=form, rank=1, init="random", exclude=["0"])
    model.load_state_dict(state)
    x = torch.randn(2, 8, 2, 2)
    torch.testing.assert_close(model(x), dense(x), rtol=1e-3, atol=1e-3)
    assert [name for name, _ in low_rank_parameters(model)] == ["3.0.weight"]
    assert not list(file.parent.glob(".*"))
    assert main(["inspect", str(out)]) == 0
    assert "packed" in capsys.readouterr().out


def test_compress_names_the_new_file_after_the_format(file, capsys):
    assert main(["compress", str(file), "--compression", "0.2"]) == 0
    assert (file.parent / "model-tucker.pt").is_file()
    assert "compression of the factorized weights" in capsys.readouterr().out


def test_a_model_is_named_by_what_makes_it(tmp_path, capsys):
    name, out = "torch.nn:Sequential(Embedding(40, 12), Linear(12, 30))", tmp_path / "small.pt"
    torch.manual_seed(0)
    how = ["--format", "fixed-rank", "--rank", "3"]
    assert main(["compress", name, *how, "--out", str(out)]) == 0
    assert "compression of the factorized weights" in capsys.readouterr().out
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(40, 12), nn.Linear(12, 30))
    factorize(model, format="fixed-rank", rank=3)
    saved = torch.load(out, weights_only=True)
    assert saved.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(saved[key], value)


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("torch.nn:Linear(3, 4)", [], "--out FILE is needed"),
        ("torch.nn:Linear(3)", ["--out", "x.pt"], "cannot make"),
        ("torch:float32", ["--out", "x.pt"], "not a torch.nn.Module"),
        ("no_such_module:Net", ["--out", "x.pt"], "cannot import"),
        ("torch.nn:ReLU", ["--out", "x.pt"], "no weight"),
    ],
)
def test_mistakes_in_the_name_of_a_model(tmp_path, monkeypatch, capsys, name, more, message):
    monkeypatch.chdir(tmp_path)
    assert main(["compress", name, "--rank", "2", *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("contents", "more", "message"),
    [
        (None, ["--rank", "2"], "does not exist"),
        (b"nonsense", ["--rank", "2"], "corrupt"),
        (nn.Linear(2, 2), ["--rank", "2"], "plain data"),
        ({"x": 1}, ["--rank", "2"], "no state dictionary"),
        ({"x": torch.zeros(3)}, ["--rank", "2"], "no weight"),
        (network().state_dict(), ["--compression", "0.9999"], "cannot be reached"),
        (network().state_dict(), ["--rank", "2", "--include", "9"], "'9'"),
        (network().state_dict(), ["--rank", "2", "--out", "nowhere/out.pt"], "does not exist"),
        (network().state_dict(), ["--rank", "2", "--out", "file.pt"], "the file that is read"),
        ({"a.weight": torch.full((3, 3), torch.nan)}, ["--tol", "0.1"], "NaN"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(tmp_path, monkeypatch, capsys, contents, more, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file.pt"
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    elif contents is not None:
        torch.save(contents, path)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    assert main(["compress", "file.pt", *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "line", ["compress f.pt", "compress f.pt --rank 2 --tol 0.1", "inspect f.pt --tol 2"]
)
def test_options_that_do_not_fit_exit_with_2(line, capsys):
    with pytest.raises(SystemExit) as caught:
        main(line.split())
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
