"""Records, tables and pictures of runs that never took place."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tenfold.experiments.comparison import read_runs, write_comparison
from tenfold.experiments.config import TrainConfig
from tenfold.experiments.metrics import EpochRecord, read_records, write_records
from tenfold.experiments.plots import plot_ranks
from tenfold.experiments.report import brief_ranks, markdown, table
from tenfold.experiments.runs import Run, read_run, write_config

PNG = b"\x89PNG\r\n"
RECORD = EpochRecord(
    epoch=1,
    step=10,
    train_loss=1.5,
    test_loss=1.25,
    test_accuracy=0.5,
    parameters=10_000,
    dense_parameters=61_706,
    compression_convolutions=0.75,
    compression_factored=0.875,
    compression_network=0.838,
    ranks={"conv2": [8, 3], "fc1": [12, 12]},
    seconds_per_step=0.002,
    lr=0.1,
    peak_memory=400 * 2**20,
)


def write_run(folder: Path, config: TrainConfig, *records: EpochRecord) -> Path:
    folder.mkdir(parents=True)
    write_config(folder, config)
    write_records(folder / "metrics.jsonl", records)
    return folder


def tucker_and_dense(folder: Path) -> list[Path]:
    config = TrainConfig(epochs=2)
    later = replace(RECORD, epoch=2, test_accuracy=0.9412, seconds_per_step=0.004, peak_memory=500 * 2**20)
    dense = replace(
        later,
        ranks={},
        test_accuracy=0.95,
        parameters=61_706,
        compression_convolutions=0.0,
        compression_factored=0.0,
        compression_network=0.0,
    )
    return [
        write_run(folder / "a", config, RECORD, later),
        write_run(folder / "b", config.dense_twin(), replace(dense, epoch=1), dense),
    ]


def test_records_on_the_disk(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = [RECORD, replace(RECORD, epoch=2, peak_memory=None)]
    write_records(path, records)
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [1, 2]
    assert read_records(path) == records


@pytest.mark.parametrize(
    ("line", "message"), [("{", "line 2, is not JSON"), ("{}", "line 2, is not an epoch's record")]
)
def test_damaged_records_are_named(tmp_path, line, message):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(RECORD.to_dict()) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=message):
        read_records(path)


def test_a_run_sums_up_its_epochs(tmp_path):
    run = read_run(tucker_and_dense(tmp_path)[0])
    assert run.config == TrainConfig(epochs=2)
    assert run.last.test_accuracy == 0.9412
    assert run.seconds_per_step == pytest.approx(0.003)
    assert run.peak_memory == 500 * 2**20


def test_the_table(tmp_path):
    rows = table(read_runs(tucker_and_dense(tmp_path)))
    assert rows[0] == ["", "tucker", "dense"]
    cells = {row[0]: row[1:] for row in rows}
    assert cells["test accuracy"] == ["94.12 %", "95.00 %"]
    assert cells["epochs"] == ["2 of 2", "2 of 2"]
    assert cells["parameters"] == ["10,000", "61,706"]
    assert cells["compression, convolutions"] == ["75.0 %", "0.0 %"]
    assert cells["compression, factored layers"] == ["87.5 %", "–"]
    assert cells["compression, whole network"] == ["83.8 %", "0.0 %"]
    assert cells["time per step"] == ["3.00 ms", "4.00 ms"]
    assert cells["peak memory"] == ["500 MiB", "500 MiB"]
    assert cells["rank of conv2"] == ["8×3", "dense"]
    assert cells["rank of fc1"] == ["12×12", "dense"]


def test_runs_of_one_method_are_told_apart_by_their_folders(tmp_path):
    config = TrainConfig()
    folders = [tmp_path / "one" / "x", tmp_path / "two" / "x", tmp_path / "two" / "y"]
    runs = [Run(folder, config, [RECORD]) for folder in folders]
    assert table(runs[1:])[0] == ["", "x", "y"]
    assert table(runs)[0] == ["", *map(str, folders)]


def test_memory_may_be_unknown():
    run = Run(Path("x"), TrainConfig(), [replace(RECORD, peak_memory=None)])
    assert ["peak memory", "unknown"] in table([run])


def test_markdown_is_aligned():
    text = markdown([["", "a"], ["speed", "12 ms"]])
    assert text == "|       | a     |\n|-------|-------|\n| speed | 12 ms |\n"


def test_ranks_in_one_line():
    assert brief_ranks({"conv": [8, 3], "fc": [5, 5]}) == "conv 8×3 fc 5×5"
    assert brief_ranks({f"conv{i}": [i, 2 * i] for i in range(1, 10)}) == "2 to 18 in 9 layers"


def test_a_comparison_on_the_disk(tmp_path):
    runs = read_runs(tucker_and_dense(tmp_path))
    write_comparison(tmp_path / "new", runs)
    text = (tmp_path / "new" / "comparison.md").read_text()
    assert text.startswith("# lenet5 on digits\n")
    assert "| test accuracy " in text
    assert "- tucker: data digits, model lenet5" in text
    assert (tmp_path / "new" / "comparison.png").read_bytes().startswith(PNG)


def test_what_cannot_be_compared(tmp_path):
    a, b = tucker_and_dense(tmp_path)
    with pytest.raises(ValueError, match="is named twice"):
        read_runs([a, b, a])
    with pytest.raises(FileNotFoundError, match="holds no run"):
        read_runs([a, tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="nothing to compare"):
        read_runs([])
    other = write_run(tmp_path / "other", TrainConfig(data="mnist"), RECORD)
    with pytest.raises(ValueError, match=r"a is on digits, .*other on mnist"):
        read_runs([a, other])
    empty = write_run(tmp_path / "empty", TrainConfig())
    with pytest.raises(ValueError, match="not finished an epoch"):
        read_runs([a, empty])


@pytest.mark.parametrize("text", ["{", "[]", '{"data": "digits"}'])
def test_a_damaged_config_is_named(tmp_path, text):
    folder = tucker_and_dense(tmp_path)[0]
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        read_run(folder)


@pytest.mark.parametrize("layers", [1, 5])
@pytest.mark.parametrize("modes", [2, 3, 4])
def test_pictures_of_ranks(tmp_path, layers, modes):
    path = tmp_path / "ranks.png"
    history = [
        (step, {f"layer{i}": [r] * modes for i in range(layers)}) for step, r in ((0, 8), (10, 5), (20, 4))
    ]
    plot_ranks(path, history, 30)
    assert path.read_bytes().startswith(PNG)


def test_a_folder_may_have_a_name_like_a_formula(tmp_path):
    a, b = tucker_and_dense(tmp_path)
    a = a.rename(tmp_path / "a$x^y^z$")
    write_comparison(tmp_path / "new", read_runs([a, b]))
    assert (tmp_path / "new" / "comparison.png").read_bytes().startswith(PNG)


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
def test_a_folder_may_have_a_name_that_is_no_text(tmp_path):
    a, b = tucker_and_dense(tmp_path)
    a = a.rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    shutil.copytree(a, tmp_path / "other")
    write_comparison(tmp_path / "new", read_runs([a, b, tmp_path / "other"]))
    assert "caf\\xe9" in (tmp_path / "new" / "comparison.md").read_text(encoding="utf-8")
    assert (tmp_path / "new" / "comparison.png").read_bytes().startswith(PNG)
