"""``tenfold train`` and ``tenfold compare``, called as functions."""

import json
import os

import pytest

from tenfold.cli import main
from tenfold.cli.errors import complain, exit_code_of
from tenfold.experiments.training import train

RUN_FILES = {"config.json", "metrics.jsonl", "checkpoint.pt", "report.md"}


def names(folder):
    return {path.name for path in folder.iterdir()}


def one_line(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("tenfold: ")
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize("method", ["tucker", "dense"])
def test_train_shows_and_writes_a_run(quick, tmp_path, capsys, method):
    folder = tmp_path / "run"
    assert main(quick("--method", method, "--out", str(folder))) == 0
    output = capsys.readouterr()
    assert output.err == ""
    lines = output.out.splitlines()
    assert lines[0] == f"lenet5, {method}, on mnist: 2 epochs of 4 steps"
    assert lines[1].startswith("epoch 1 of 2  loss ")
    assert lines[2].startswith("epoch 2 of 2  loss ")
    assert ("ranks conv2 " in lines[2]) == (method == "tucker")
    assert any(line.startswith("test accuracy") for line in lines)
    assert any(line.startswith("compression, whole network") for line in lines)
    assert str(folder / "report.md") in output.out
    assert names(folder) == RUN_FILES | ({"ranks.png"} if method == "tucker" else set())
    report = (folder / "report.md").read_text()
    assert f"| {method}" in report
    assert ("rank of fc1" in report) == (method == "tucker")


def test_the_first_convolution_and_the_last_layer_are_dense_unless_asked(quick, tmp_path):
    for name, more in (("some", ()), ("all", ("--factorize-all",))):
        assert main(quick("--epochs", "1", "--out", str(tmp_path / name), *more)) == 0
    layers = {
        name: list(json.loads((tmp_path / name / "metrics.jsonl").read_text())["ranks"])
        for name in ("some", "all")
    }
    assert layers == {"some": ["conv2", "fc1", "fc2"], "all": ["conv1", "conv2", "fc1", "fc2", "fc3"]}


def test_rank_and_cadence_reach_the_layers(quick, tmp_path):
    assert main(quick("--rank", "2", "--adapt-every", "0", "--out", str(tmp_path / "run"))) == 0
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["ranks"] == {"conv2": [2, 2], "fc1": [2, 2], "fc2": [2, 2]}
    stored = (16 * 2 + 2 * 2 * 25 + 2 * 6) + (120 * 2 + 4 + 2 * 400) + (84 * 2 + 4 + 2 * 120)
    dense = 16 * 6 * 25 + 120 * 400 + 84 * 120
    assert record["parameters"] == 61_706 - dense + stored
    assert record["compression_factored"] == pytest.approx(1 - stored / dense)
    assert record["compression_network"] == pytest.approx((dense - stored) / 61_706)
    convolutions = (6 * 25 + 16 * 2 + 2 * 2 * 25 + 2 * 6) / (6 * 25 + 16 * 6 * 25)
    assert record["compression_convolutions"] == pytest.approx(1 - convolutions)


def test_the_folder_has_a_default_name(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(quick("--epochs", "1", "--method", "dense")) == 0
    assert names(tmp_path / "runs" / "mnist-lenet5-dense") == RUN_FILES


def test_beside_dense(quick, tmp_path, capfd):
    folder = tmp_path / "run"
    assert main(quick("--seed", "3", "--out", str(folder), "--beside-dense")) == 0
    output = capfd.readouterr()
    assert output.err == ""
    table = output.out[output.out.index("lenet5, dense") :]
    assert "epoch 2 of 2" in table
    assert ["tucker", "dense"] in [line.split() for line in table.splitlines()]
    assert "rank of conv2" in table
    assert names(folder) == RUN_FILES | {"ranks.png", "dense", "comparison.md", "comparison.png"}
    assert names(folder / "dense") == RUN_FILES
    twin = json.loads((folder / "dense" / "config.json").read_text())
    assert (twin["method"], twin["seed"], twin["tau"], twin["epochs"]) == ("dense", 3, None, 2)
    assert "| tucker" in (folder / "comparison.md").read_text()
    # Both are finished: resuming has nothing to train and compares again.
    (folder / "comparison.md").unlink()
    assert main(["train", "--resume", "--out", str(folder), "--beside-dense"]) == 0
    assert (folder / "comparison.md").exists()


def test_under_torchrun_the_dense_network_waits_as_long(tmp_path, monkeypatch):
    waited = {}

    def stopped_at_the_twin(config, folder, resume, again, timeout=600.0):
        waited[config.method] = timeout
        return 0 if config.method == "tucker" else 130

    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "x"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tenfold.cli.train.train_visibly", stopped_at_the_twin)
    assert main(["train", "--beside-dense", "--timeout", "30", "--out", str(tmp_path / "run")]) == 130
    assert waited == {"tucker": 30.0, "dense": 30.0}


def test_compare(quick, tmp_path, capsys):
    for name, more in (("a", ("--rank", "2")), ("b", ("--rank", "4")), ("c", ("--method", "dense"))):
        assert main(quick("--epochs", "1", "--out", str(tmp_path / name), *more)) == 0
    capsys.readouterr()
    folders = [str(tmp_path / name) for name in "abc"]
    assert main(["compare", *folders, "--out", str(tmp_path / "all")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["a", "b", "c"] in [line.split() for line in lines]
    assert names(tmp_path / "all") == {"comparison.md", "comparison.png"}
    assert main(["compare", folders[1]]) == 0
    assert (tmp_path / "b" / "comparison.png").exists()


def stop_after(monkeypatch, epochs: int, steps: int = 0) -> None:
    """Let the next run be interrupted in the first step after so many epochs and steps."""

    def interrupted(config, folder, *, observer, **options):
        stepped = observer.stepped

        def watch(step):
            stepped(step)
            if step.epoch > epochs and step.step > steps:
                raise KeyboardInterrupt

        observer.stepped = watch
        return train(config, folder, observer=observer, **options)

    monkeypatch.setattr("tenfold.cli.session.train", interrupted)


def test_an_interruption_says_how_to_resume_and_resuming_finishes(quick, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert main(quick("--seed", "5", "--out", str(folder))) == 130
    assert f"1 of 2 epochs are kept. Go on with: tenfold train --resume --out {folder}\n" in one_line(capsys)
    assert main(["train", "--resume", "--out", str(folder)]) == 0  # the options are those of the run
    assert "2 epochs of 4 steps, going on after epoch 1" in capsys.readouterr().out
    assert json.loads((folder / "config.json").read_text())["seed"] == 5
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2


def test_an_interruption_within_an_epoch_says_how_far_it_was(quick, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 1, 2)
        assert main(quick("--checkpoint-every", "2", "--out", str(folder))) == 130
    assert "1 of 2 epochs and 2 steps of the next are kept. Go on with: " in one_line(capsys)
    assert main(["train", "--resume", "--out", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "2 epochs of 4 steps, going on after epoch 1" in shown
    assert "going on after step 2 of 4 in epoch 2" in shown


def test_an_interruption_before_the_first_epoch(quick, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 0)
        assert main(quick("--out", str(tmp_path / "run"))) == 130
    assert "nothing is kept" in one_line(capsys)
    assert main(["train", "--resume", "--out", str(tmp_path / "run")]) == 2
    assert "there is nothing to resume" in one_line(capsys)
    assert main(quick("--out", str(tmp_path / "run"))) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tau", "1"], "tau must be a number in [0, 1), not 1.0"),
        (["--rank", "0"], "rank must be a fraction in (0, 1] or a whole number"),
        (["--method", "dense", "--tau", "0.1"], "tau has no effect on the method 'dense'"),
        (["--method", "dense", "--beside-dense"], "--beside-dense has no effect on the method 'dense'"),
        (["--batch-size", "100"], "batch_size 100 is more than the 64 training images of mnist"),
        (["--device", "cuda:77"], "device 'cuda:77' is not available here"),
        (["--lr", "nan"], "lr must be a positive number, not nan"),
        (["--data-dir", "nowhere"], "the data directory nowhere does not exist; it should hold MNIST/raw/"),
        (["--resume"], "there is nothing to resume"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # what torch says about drivers is not the point
def test_mistakes_are_one_line_and_exit_2(quick, tmp_path, capsys, more, message):
    assert main(quick("--out", str(tmp_path / "run"), *more)) == 2
    assert message in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_is_left_alone(quick, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(quick("--epochs", "1", "--out", str(folder))) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    assert main(quick("--epochs", "1", "--out", str(folder))) == 2
    assert "already holds a run: resume it with --resume" in one_line(capsys)
    assert main(["train", "--resume", "--out", str(folder), "--epochs", "7"]) == 2
    assert "is of another run: it was trained with epochs 1 instead of 7" in one_line(capsys)
    (folder / "checkpoint.pt").write_bytes(before["checkpoint.pt"][:1000])
    assert main(["train", "--resume", "--out", str(folder)]) == 2
    assert "checkpoint.pt is truncated or not a checkpoint" in one_line(capsys)
    (folder / "checkpoint.pt").write_bytes(before["checkpoint.pt"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_twin_s_folder_is_left_alone_before_anything_is_trained(quick, tmp_path, capsys):
    assert main(quick("--epochs", "1", "--method", "dense", "--out", str(tmp_path / "run" / "dense"))) == 0
    capsys.readouterr()
    assert main(quick("--out", str(tmp_path / "run"), "--beside-dense")) == 2
    assert "dense already holds a run" in one_line(capsys)
    assert names(tmp_path / "run") == {"dense"}


def test_comparing_what_is_not_there(tmp_path, capsys):
    assert main(["compare", str(tmp_path)]) == 2
    assert "holds no run: there is no config.json in it" in one_line(capsys)


def test_a_missing_extra_says_how_to_install_it(capsys):
    def needs() -> int:
        raise ModuleNotFoundError("No module named 'rich'", name="rich")

    assert exit_code_of(needs) == 2
    assert one_line(capsys) == "tenfold: rich is not installed: pip install 'tenfold[train]'\n"


def test_other_errors_keep_their_traceback(monkeypatch):
    def broken() -> int:
        raise RuntimeError("a bug")

    def missing() -> int:
        raise ModuleNotFoundError("No module named 'tenfold.optics'", name="tenfold.optics")

    def mistaken() -> int:
        raise ValueError("odd")

    with pytest.raises(RuntimeError, match="a bug"):
        exit_code_of(broken)
    with pytest.raises(ModuleNotFoundError, match="optics"):
        exit_code_of(missing)
    monkeypatch.setitem(os.environ, "TENFOLD_DEBUG", "1")
    with pytest.raises(ValueError, match="odd"):
        exit_code_of(mistaken)


def test_complaints_are_one_line(capsys):
    complain("several\n   lines of torch")
    assert capsys.readouterr().err == "tenfold: several lines of torch\n"
