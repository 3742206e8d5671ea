"""The whole chain on a miniature sweep: trials, runs, a kill, a resume, a report."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from tenfold.cli import main
from tenfold.experiments.grid import Entry, Sweep, read_sweep, run_id
from tenfold.experiments.result import Result, read_results
from tenfold.experiments.sweep import RESULTS, SweepRunner
from tenfold.experiments.training import train

FILE = """
common: {data: mnist, model: lenet5, epochs: 3, batch_size: 16, device: cpu}
seeds: [7]
tune: {epochs: 1, seed: 1000}
blocks:
  - {method: tucker, optimizer: tdlrt, adapt_every: 2, tau: 0.2, lr: [0.02, 1.0e+30], schedule: constant}
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


def test_a_run_killed_after_its_result_is_recorded_and_leaves_no_checkpoint(file, tmp_path, mnist_folder):
    out, elsewhere = tmp_path / "results", tmp_path / "elsewhere"
    sweep = ["sweep", str(file), "--data-dir", str(mnist_folder), "--only", "method=dense", "--out"]
    subprocess.run([sys.executable, "-m", "tenfold", *sweep, str(elsewhere)], check=True, timeout=120)
    (done,) = lines(elsewhere).values()
    folder = out / "runs" / done.id
    shutil.copytree(elsewhere / "runs" / done.id, folder)
    (folder / "checkpoint.pt").write_text("what it was killed with")
    assert main([*sweep, str(out)]) == 0
    assert lines(out) == {done.id: done}
    assert not (folder / "checkpoint.pt").exists()


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


@pytest.mark.parametrize(("epoch", "status"), [(0, "finished"), (1, "diverged")])
def test_a_test_loss_that_is_not_finite_at_the_end_counts_as_divergence(tiny, tmp_path, epoch, status):
    config = tiny(method="dense", epochs=2)
    records = train(config, tmp_path).records
    records[epoch] = replace(records[epoch], test_loss=float("nan"))
    result = Result.of(config, "s", None, "run", records, [], True)
    assert result.status == status
    assert Result.from_line(result.to_line()).status == status
    assert (result.final_loss is None) == (status == "diverged")


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
