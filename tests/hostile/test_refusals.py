"""Single mistakes and attacks, each with the reason that is given."""

import ast
import copy
import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

import tenfold
from tenfold.cli import main
from tenfold.cli.errors import complain
from tenfold.cli.expression import evaluate
from tenfold.experiments import checkpoint
from tenfold.experiments.config import TrainConfig
from tenfold.experiments.metrics import read_records
from tenfold.experiments.result import Result
from tenfold.experiments.runs import read_config
from tenfold.experiments.summary import settings
from tenfold.nn.adapters import import_lora
from tenfold.untrusted.torch_file import load_torch
from tests.hostile.loaders import (
    PEFT,
    adapter_files,
    checkpoint_contents,
    fresh_state,
    frozen,
    result_lines,
)
from tests.hostile.mutations import nested, pickle_of, repacked, saved
from tests.hostile.snapshot import everything, same

# Files of torch.save -------------------------------------------------------------------------


def test_one_flipped_bit_in_a_tensor_is_noticed(tmp_path):
    raw, contents = checkpoint_contents()
    at = raw.index(contents["model"]["1.weight"].numpy().tobytes())
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(raw[: at + 2] + bytes([raw[at + 2] ^ 1]) + raw[at + 3 :])
    assert torch.load(path, weights_only=True).keys() == contents.keys()  # torch alone does not see it
    with pytest.raises(
        ValueError, match=r"checkpoint\.pt is truncated or not a checkpoint: the record .* damaged"
    ):
        checkpoint.read(path)


class Harm:
    def __reduce__(self):
        return print, ("harm done",)


def other_end():
    raw = saved({"a": torch.zeros(2)})
    return raw + raw[-22:]


def twice():
    raw, stream = saved({"a": torch.zeros(2)}), io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in ("archive/data.pkl", "archive/data/0", "archive/DATA/0"):
            archive.writestr(name, pickle_of(raw) if name.endswith("pkl") else b"\0" * 8)
    return stream.getvalue()


def older():
    stream = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: saved(Harm()), "asks for __builtin__.print"),
        (lambda: saved({"a": nn.Linear(2, 2)}), "asks for torch.nn.modules.linear.Linear"),
        (lambda: saved({"a": torch.zeros(3, 3).to_sparse()}), "sparse"),
        (lambda: saved({"a": torch.empty(3, device="meta")}), "meta"),
        (lambda: repacked(saved(1), b"\x80\x02\x82\x01."), "extension registry"),
        (lambda: repacked(saved(1), b"\x80\x02N.N."), "follow its end"),
        (older, "older than torch 1.6"),
        (other_end, "list of records is not where it should be"),
        (twice, "not named as torch names them"),
        (lambda: b"", "older than torch 1.6"),
    ],
)
def test_archives_are_checked(tmp_path, capsys, make, message):
    path = tmp_path / "w.pt"
    path.write_bytes(make())
    with pytest.raises(ValueError, match=message) as caught:
        load_torch(path)
    assert str(path) in str(caught.value)
    assert capsys.readouterr().out == ""


CHANGES = {
    "an epoch too many": (lambda c: c.update(epoch=99), "of 99 epochs"),
    "epoch True": (lambda c: c.update(epoch=True), "epoch must be a whole number"),
    "no step": (lambda c: c.pop("step"), "has no 'step'"),
    "a foreign configuration": (lambda c: c["config"].update(lr=0.5), "another run"),
    "a configuration of lists": (lambda c: c["config"].update(lr=nested(50)), "type list"),
    "a missing weight": (lambda c: c["model"].pop("1.weight"), "1.weight"),
    "another precision": (lambda c: c["model"].update({"2.bias": torch.zeros(3).double()}), "float64"),
    "NaN": (lambda c: c["model"]["2.bias"].fill_(torch.nan), "2.bias is complex, or holds NaN"),
    "a scheduler's method": (lambda c: c["scheduler"].update(step=1), "must not have 'step'"),
    "a scheduler's steps": (lambda c: c["scheduler"].update(total_steps="9"), "total_steps must be a number"),
    "moments that do not fit": (
        lambda c: c["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)),
        "load the model's state before",
    ),
    "lr x": (lambda c: c["optimizer"]["param_groups"][0].update(lr="x"), "lr must be a number"),
    "betas": (
        lambda c: c["optimizer"]["param_groups"][0].update(betas=(2.0, 0.9)),
        r"betas\[0\] must be a number",
    ),
    "every 0": (
        lambda c: c["optimizer"]["param_groups"][0]["rank_adaptation"].update(every=0),
        "every must be at least 1",
    ),
    "a record": (lambda c: c["records"][0].update(lr="x"), "records\\[0\\] is not an epoch's record"),
    "ranks": (lambda c: c.update(rank_history=[(0, {"a": [0]})]), "must be a whole number from 1"),
}


def resume(path, state):
    found = checkpoint.read(path)
    checkpoint.check_same_run(path, found, state.config)
    checkpoint.restore(path, found, state)


@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path, change):
    contents = copy.deepcopy(checkpoint_contents()[1])
    CHANGES[change][0](contents)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(saved(contents))
    state = fresh_state()
    before = everything(state.model, state.optimizer, state.scheduler)
    with pytest.raises(ValueError, match=CHANGES[change][1]) as caught:
        resume(path, state)
    assert "checkpoint.pt" in str(caught.value)
    same(before, state.model, state.optimizer, state.scheduler)


# Text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": 5}, "method must be a string"),
        ({"lr": 10**400}, "lr must be a positive number"),
        ({"amp": 1}, "amp must be True or False"),
        ({"device": 5}, "device must be a string"),
        ({"data_dir": 5}, "data_dir must be a string or None"),
        ({"seed": 2**63}, "seed must be below"),
        ({"rank": 2**70}, "rank must be"),
    ],
)
def test_a_configuration_that_is_none(tmp_path, change, message):
    (tmp_path / "config.json").write_text(json.dumps({**TrainConfig().to_dict(), **change}))
    with pytest.raises(ValueError, match=rf"config\.json: {message}"):
        read_config(tmp_path)


@pytest.mark.parametrize("raw", [b"\xff\xfe{}", b"[" * 10**5, b"9" * 10**5, b"{"])
def test_text_that_is_none_is_named(tmp_path, raw):
    for name, read in (("config.json", lambda p: read_config(p.parent)), ("metrics.jsonl", read_records)):
        path = tmp_path / name
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=name):
            read(path)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(a+)+", "repeats a group"),
        ("a*" * 5, "repeats too much"),
        ("a" * 2000, "too long"),
        ("(", "corrupt"),
    ],
)
def test_patterns_that_could_take_forever(tmp_path, pattern, message):
    _, raw, config = adapter_files()
    (tmp_path / PEFT[0]).write_bytes(raw)
    (tmp_path / PEFT[1]).write_text(json.dumps({**json.loads(config), "rank_pattern": {pattern: 2}}))
    with pytest.raises(ValueError, match=message):
        import_lora(frozen(), tmp_path)


def test_ranks_that_differ_name_both_files(tmp_path):
    _, raw, config = adapter_files()
    (tmp_path / PEFT[0]).write_bytes(raw)
    (tmp_path / PEFT[1]).write_text(json.dumps({**json.loads(config), "r": 7}))
    with pytest.raises(ValueError, match=rf"{PEFT[1]}.*rank 2, the configuration says 7"):
        import_lora(frozen(), tmp_path)


def test_a_result_without_the_later_fields_has_their_defaults():
    values = json.loads(result_lines().splitlines()[0])
    del values["config"]["decay"]
    (setting,) = settings([Result.from_line(json.dumps(values))])
    assert setting.decay == 1.0


# The command line ----------------------------------------------------------------------------


def test_nan_names_the_file(tmp_path, capsys):
    path = tmp_path / "w.pt"
    torch.save({"a.weight": torch.full((4, 4), torch.nan)}, path)
    assert main(["compress", str(path), "--rank", "1"]) == 2
    assert f"{path}: a: " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["forward.weight", "a.b..weight", ".".join("a" * 2000) + ".weight"])
def test_names_that_no_layer_can_have(tmp_path, capsys, name):
    path = tmp_path / "w.pt"
    torch.save({name: torch.zeros(3, 4)}, path)
    assert main(["inspect", str(path)]) == 2
    error = capsys.readouterr().err
    assert "cannot be the weight of a layer" in error
    assert error.count("\n") == 1


def test_a_layer_inside_of_a_layer_is_not_lost(tmp_path, capsys):
    path = tmp_path / "w.pt"
    torch.save({"a.b.weight": torch.randn(3, 4), "a.weight": torch.randn(5, 6)}, path)
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "a.b " in out
    assert "5x6" in out


def test_tensors_that_share_memory_are_written_as_safetensors(tmp_path):
    pytest.importorskip("safetensors")
    weight = torch.randn(6, 5)
    torch.save({"a.weight": weight, "b.bias": weight[0], "c.bias": weight[0]}, tmp_path / "w.pt")
    out = ["--out", str(tmp_path / "w.safetensors")]
    assert main(["compress", str(tmp_path / "w.pt"), "--rank", "1", *out]) == 0


def test_messages_are_one_printable_line(capsys):
    complain("\x1b[31mred\nand \x07" + "x" * 10**6)
    error = capsys.readouterr().err
    assert error.startswith("tenfold: \\x1b[31mred and \\x07x")
    assert len(error) < 2100


@pytest.mark.parametrize(
    "target",
    ["..x:y", "torch.nn:" + "(" * 5000, "torch.nn:Linear(-1, 2)", "torch.nn:\0", "torch.nn:Linear(2"],
)
def test_expressions_that_fail(target):
    with pytest.raises(ValueError):
        evaluate(target, "a model")


# The code ------------------------------------------------------------------------------------

_FORBIDDEN = {"eval", "exec", "compile", "__import__"}
_SOURCES = sorted(Path(tenfold.__file__).parent.rglob("*.py"))


def calls(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield (
                ast.unparse(node.func),
                {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords},
            )


def test_nothing_is_unpickled_or_evaluated():
    """Only the unpickler of stand-ins, and ``torch.load`` for plain data after it, are there at all."""
    readers = {
        "pickle.load",
        "pickle.loads",
        "torch.load",
        "np.load",
        "numpy.load",
        "yaml.load",
        "joblib.load",
    }
    found = []
    for path in _SOURCES:
        for name, keywords in calls(path):
            assert name not in _FORBIDDEN, path
            if name in readers or name.startswith(("shelve.", "marshal.", "dill.")):
                found.append((path.name, name, keywords.get("weights_only")))
    assert sorted(found) == [("torch_file.py", "torch.load", "True"), ("yaml_file.py", "yaml.load", None)]
    unpicklers = [path.name for path in _SOURCES if "Unpickler" in path.read_text(encoding="utf-8")]
    assert unpicklers == ["pickled.py"]
    assert pickle.dumps(Harm()) != b""
