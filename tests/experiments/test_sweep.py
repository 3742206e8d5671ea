"""The whole chain on a miniature sweep: trials, runs, a kill, a resume, a report."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from tenfold.cli import main
from tenfold.experiments.evidence import read_evidence, write_evidence
from tenfold.experiments.evidence_tables import size_table
from tenfold.experiments.grid import Entry, Sweep, read_sweep, run_id
from tenfold.experiments.result import Result, read_results
from tenfold.experiments.summary import settings
from tenfold.experiments.sweep import RESULTS, SweepRunner
from tenfold.experiments.training import train

FILE = """
common: {data: mnist, model: lenet5, epochs: 3, batch_size: 16, device: cpu}
seeds: [7]
tune: {epochs: 1, seed: 1000}
blocks:
  - {method: tucker, optimizer: tdlrt, tau: 0.2, lr: [0.02, 1.0e+30], schedule: constant}
  - {method: dense, lr: 0.02}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mini.yaml"
    path.write_text(FILE.replace(", device: cpu", ""))
    return path


def lines(folder):
    return {result.id: result for result in read_results(folder / RESULTS)}


def deterministic(result: Result) -> dict:
    """A result without what depends on the clock and the machine."""
    curve = [{k: v for k, v in epoch.items() if k != "seconds_per_step"} for epoch in result.curve]
    return {"config": result.config, "curve": curve, "losses": result.losses, "ranks": result.ranks}


def test_a_killed_sweep_goes_on_and_skips_what_is_done(file, tmp_path, mnist_folder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "results"
    command = [sys.executable, "-m", "tenfold", "sweep", str(file), "--out", str(out), "--jobs", "2"]
    command += ["--data-dir", str(mnist_folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    entry = read_sweep(file, str(mnist_folder)).entries[0]
    folder = out / "runs" / run_id(replace(entry.config, lr=0.02))
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint.pt").exists() and not (folder / "result.json").exists():
        assert process.poll() is None or (folder / "result.json").exists()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)  # the processes of the runs notice
    interrupted = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    time.sleep(0.5)
    assert interrupted == {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}, "nobody writes"
    with (out / RESULTS).open("a") as torn:
        torn.write('{"id": "half a li')
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
    results = lines(out)
    runs = [result for result in results.values() if result.kind == "run"]
    assert len(results) == 4
    assert [result.config["method"] for result in sorted(runs, key=lambda r: r.config["method"])] == [
        "dense",
        "tucker",
    ]
    for result in runs:
        config = next(
            e.config
            for e in read_sweep(file, str(mnist_folder)).entries
            if e.config.method == result.config["method"]
        )
        whole = train(replace(config, lr=result.config["lr"]), tmp_path / result.id)
        assert [epoch["train_loss"] for epoch in result.curve] == pytest.approx(
            [record.train_loss for record in whole.records], rel=1e-5
        )
        assert result.peak_memory is not None
        assert not (out / "runs" / result.id / "checkpoint.pt").exists()
    tucker = next(result for result in runs if result.config["method"] == "tucker")
    assert tucker.config["lr"] == 0.02
    (good, bad) = tucker.tuning["rates"]
    assert good[0] == 0.02
    assert 0 < good[1] < 3
    assert bad == [1e30, None], "a rate that diverges is recorded as such"
    text = (out / RESULTS).read_text()
    assert str(tmp_path) not in text
    assert os.uname().nodename not in text
    assert json.loads(text.splitlines()[0])["machine"]["cores"] == os.cpu_count()
    # Everything is done: nothing is computed again, not even without the folders of the runs.
    (out / "runs").rename(tmp_path / "elsewhere")
    assert main(command[3:]) == 0
    assert lines(out) == results
    assert not (out / "runs").exists()
    assert main(["report", str(out)]) == 0
    assert "| TDLRT" in (out / "report.md").read_text()


def test_a_run_that_cannot_be_done_does_not_stop_the_others(tiny, tmp_path, capfd):
    good = tiny(method="dense", epochs=1)
    hopeless = tiny(method="tucker", compression=0.9999, epochs=1)
    told = []
    runner = SweepRunner(Sweep("s", (Entry(hopeless), Entry(good))), tmp_path, 1, told.append)
    assert runner.left() == (0, 2)
    assert runner.run() is False
    assert [result.id for result in read_results(tmp_path / RESULTS)] == [run_id(good)]
    assert any("not done: lenet5 tucker sgd" in line for line in told)
    assert "compression 0.9999 is out of reach" in capfd.readouterr().err
    assert runner.left() == (0, 1)


def test_mistakes_on_the_command_line(file, tmp_path, capsys):
    file.write_text(FILE.replace("tau: 0.2", "tua: 0.2"))
    assert main(["sweep", str(file), "--out", str(tmp_path / "out")]) == 2
    assert "has no key 'device'" in capsys.readouterr().err
    file.write_text(FILE.replace(", device: cpu", ""))
    assert main(["sweep", str(file), "--out", str(tmp_path / "out"), "--jobs", "0"]) == 2
    assert "jobs must be at least 1, not 0" in capsys.readouterr().err
    assert main(["sweep", str(tmp_path / "none.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert main(["report", str(tmp_path)]) == 2
    assert "it has no file *.jsonl" in capsys.readouterr().err.splitlines()[-1]
    assert main(["sweep", str(file), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert capsys.readouterr().out == "mini: 2 of 2 trials and 2 of 2 runs to do\n"
    assert not (tmp_path / "out").exists()


def made_up(method="tucker", seed=0, accuracy=0.9, model="vgg16", data="cifar10", **given) -> Result:
    """A result as a run would have left it."""
    from tenfold.experiments.config import TrainConfig

    if method != "dense" and not {"tau", "compression"} & set(given):
        given["compression"] = 0.8
    config = TrainConfig.recipe(method=method, seed=seed, model=model, data=data, **given)
    curve = [
        {
            "epoch": epoch,
            "step": 100 * epoch,
            "train_loss": 1.0 / epoch,
            "test_loss": 1.0,
            "test_accuracy": accuracy - 0.1 * (2 - epoch),
            "parameters": 1000,
            "compression_convolutions": 0.8,
            "compression_factored": 0.82,
            "compression_network": 0.7,
            "seconds_per_step": 0.01,
            "lr": 0.1,
        }
        for epoch in (1, 2)
    ]
    scale = {"tucker": 0.5}.get(method, 1.0)
    losses = [[step, scale * 100.0 / step] for step in range(10, 201, 10)]
    ranks = [[0, {"a": [4, 3]}], [50, {"a": [2, 2]}]] if method == "tucker" else []
    result = Result.of(config, "made up", None, "run", [], [], True)
    return replace(result, curve=curve, losses=losses, ranks=ranks, peak_memory=2**30)


def test_tables_average_over_seeds(tmp_path):
    results = [made_up(seed=seed, accuracy=a) for seed, a in enumerate((0.88, 0.9, 0.92))]
    results += [replace(made_up(seed=3), status="diverged", curve=[], losses=[])]
    results += [made_up("dense", accuracy=0.95), replace(made_up(accuracy=0.1), kind="trial")]
    (tmp_path / "a.jsonl").write_text("".join(result.to_line() for result in results))
    written = write_evidence(tmp_path / "out", read_evidence(tmp_path))
    text = (tmp_path / "out" / "report.md").read_text()
    row = next(line for line in text.splitlines() if re.match(r"\| RiemannianSGD *\| compression 0.8", line))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        *("RiemannianSGD", "compression 0.8", "0.1", "3", "90.00 ± 2.00 %", "82.0 %", "80.0 %", "1,000"),
        *("10.0 ms", "1,024 MiB", "1"),
    ]
    assert "5 runs and 1 trials" in text
    times = {
        line.split("|")[1].strip(): line.split("|")[3].strip() for line in text.splitlines() if "| " in line
    }
    assert times["dense, SGD"] == "2"
    assert times["RiemannianSGD"] == "not reached"
    assert all(path.stat().st_size > 1000 for path in written[1:])
    assert {path.name.removeprefix("cifar10-vgg16-") for path in written[1:]} == {
        *("accuracy.png", "variance.png", "ranks.png", "time.png", "memory.png")
    }


def test_sizes_are_columns():
    """Rows in the order of the methods; seeds that some sizes lack are told; what has no size is left out."""
    results = [made_up("loose-cp", optimizer="adamw", compression=0.8, accuracy=0.5), made_up("dense")]
    results += [made_up(compression=c, seed=seed, accuracy=c) for c in (0.9, 0.8) for seed in range(2)]
    results += [made_up(compression=0.9, seed=2, accuracy=0.96), made_up(rank=0.5, tau=0.1, accuracy=0.7)]
    group = settings(results)
    assert size_table(group, "compression") == [
        ["weights, optimizer", "seeds", "compression 0.8", "compression 0.9"],
        ["RiemannianSGD", "2 to 3", "80.00 ± 0.00 (82.0)", "92.00 ± 3.46 (82.0)"],
        ["loose CP factors, AdamW", "1", "50.00 (82.0)", "–"],
    ]
    assert size_table(group, "tau")[1:] == [["RiemannianSGD, by tolerance", "1", "70.00 (82.0)"]]


def test_the_table_of_sizes_tells_starts_apart():
    results = [made_up(rank=rank, tau=0.1, accuracy=rank) for rank in (0.25, 0.5)]
    assert [row[0] for row in size_table(settings(results), "tau")[1:]] == [
        f"RiemannianSGD, by tolerance, rank {rank}" for rank in (0.25, 0.5)
    ]
    results = [made_up(tau=0.1, decay=decay) for decay in (None, 10.0)]
    assert [row[0] for row in size_table(settings(results), "tau")[1:]] == [
        f"RiemannianSGD, by tolerance, decay {decay}" for decay in (1, 10)
    ]


def test_settings_are_told_apart_by_when_ranks_are_adapted():
    results = [made_up(tau=0.1), made_up(tau=0.1, adapt_start=40), made_up(adapt_start=40)]
    results += [made_up(tau=0.1, adapt_every=0), made_up(start_compression=0.5), made_up(adapt_every=3)]
    results += [made_up(optimizer="tdlrt", adapt_every=every) for every in (3, 10)]
    results += [made_up(tau=0.1, oversampling=4)]
    assert [setting.label for setting in settings(results)] == [
        "RiemannianSGD, by tolerance",
        "RiemannianSGD, by tolerance, from step 40",
        "RiemannianSGD, from step 40",
        "RiemannianSGD, fixed ranks",
        "RiemannianSGD, from compression 0.5",
        "RiemannianSGD, every 3 steps",
        "RiemannianSGD, by tolerance, oversampling 4",
        "TDLRT",
        "TDLRT, every 10 steps",
    ]


def test_robustness_counts_steps_to_the_best_loose_run(tmp_path):
    results = [
        made_up(m, decay=d, model="lenet5", data="mnist")
        for m in ("tucker", "loose-tucker")
        for d in (None, 2.0)
    ]
    write_evidence(tmp_path, results)
    text = (tmp_path / "report.md").read_text()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("| 2 ")
    ]
    steps = {row[1]: int(row[6]) for row in rows}
    assert steps["loose Tucker factors, SGD"] > 1.5 * steps["RiemannianSGD"]
    assert (tmp_path / "mnist-lenet5-robustness.png").exists()


def test_published_points_are_beside_ours():
    from tenfold.experiments.published import published_points

    points = published_points("alexnet", "cifar10")
    assert {p.method for p in points} == {"full", "tdlrt", "tucker", "matrix", "cp"}
    assert next(p.accuracy for p in points if p.method == "full") == 85.45
    assert published_points("lenet5", "mnist") == []
