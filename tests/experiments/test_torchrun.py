"""``tenfold train`` and ``tenfold sweep`` under torchrun, with no other change."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tenfold.experiments.checkpoint import read
from tenfold.experiments.processes import Processes, forget_launch, launched, leads
from tenfold.experiments.runs import CHECKPOINT, METRICS

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")

TRAIN = ["train", "--epochs", "2", "--batch-size", "64", "--adapt-every", "5", "--seed", "3"]


def torchrun(processes, *arguments, options=()):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    return [*command, str(processes), *options, "-m", "tenfold", *map(str, arguments)]


def run(command, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, text=True, capture_output=True, timeout=240, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alone(*arguments):
    return run([sys.executable, "-m", "tenfold", *map(str, arguments)])


def losses(folder):
    lines = (folder / METRICS).read_text().splitlines() if (folder / METRICS).is_file() else []
    return [[json.loads(line)["train_loss"], json.loads(line)["test_loss"]] for line in lines]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One epoch in two processes and one more in one, and both epochs in one."""
    folder = tmp_path_factory.mktemp("runs")
    said = run(torchrun(2, *TRAIN, "--out", folder / "two"))
    alone(*TRAIN, "--out", folder / "one")
    return folder, said


def test_several_processes_train_what_one_trains(runs):
    folder, said = runs
    assert said.count("epoch 2 of 2") == 1  # only one of them speaks
    torch.testing.assert_close(losses(folder / "two"), losses(folder / "one"), rtol=2e-3, atol=2e-3)
    ranks = [read(folder / name / CHECKPOINT)["rank_history"] for name in ("one", "two")]
    assert len(ranks[0]) > 2
    assert [step for step, _ in ranks[0]] == [step for step, _ in ranks[1]]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes in /proc")
def test_a_killed_process_restarts_the_run_from_its_checkpoint(runs, tmp_path):
    code, said = killed(tmp_path, "--max-restarts", "1")
    assert code == 0, said
    assert "going on" in said
    assert losses(tmp_path) == losses(runs[0] / "two")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes in /proc")
def test_a_killed_run_goes_on_in_another_number_of_processes(runs, tmp_path):
    code, _ = killed(tmp_path)
    assert code != 0
    assert len(losses(tmp_path)) < 2
    assert "going on" in alone("train", "--resume", "--out", tmp_path)
    torch.testing.assert_close(losses(tmp_path), losses(runs[0] / "two"), rtol=2e-3, atol=2e-3)


def killed(folder, *options):
    """What becomes of a training by two processes when one of them is killed after the first checkpoint."""
    command = torchrun(2, *TRAIN, "--out", folder, "--checkpoint-every", 3, options=options)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            deadline = time.monotonic() + 120
            while not (folder / CHECKPOINT).is_file() and time.monotonic() < deadline:
                time.sleep(0.02)
            os.kill(_children(process.pid)[1], signal.SIGKILL)
            said, _ = process.communicate(timeout=200)
        finally:
            process.kill()
    return process.returncode, said


def _children(pid):
    return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_a_sweep_is_shared_out(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "name: shared\ncommon: {data: digits, model: lenet5, epochs: 1, batch_size: 256}\nseeds: 3\n"
        "blocks:\n  - {method: dense}\n"
    )
    said = run(torchrun(2, "sweep", file, "--out", tmp_path / "out"))
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert sorted(line["config"]["seed"] for line in lines) == [0, 1, 2]
    assert said.count("shared: 0 of 0 trials and 3 of 3 runs to do") == 1
    again = alone("sweep", file, "--out", tmp_path / "out")
    assert "0 of 3 runs to do" in again


def test_the_runs_of_a_sweep_are_spread_over_the_gpus(monkeypatch):
    chosen = []
    monkeypatch.setenv("LOCAL_RANK", "6")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    forget_launch()
    assert chosen == [2]
    assert "LOCAL_RANK" not in os.environ
    forget_launch()  # not under torchrun: the first GPU, or what CUDA_VISIBLE_DEVICES names
    assert chosen == [2]


def test_batches_that_cannot_be_shared_out():
    with pytest.raises(ValueError, match="batch_size 33 cannot be shared out to 2 processes"):
        Processes(0, 2).check_batch_size(33)


def test_parts_make_up_the_batch():
    batch = torch.arange(12)
    assert torch.equal(torch.cat([Processes(k, 3).part(batch) for k in range(3)]), batch)
    assert torch.equal(Processes().part(batch), batch)


def test_without_torchrun(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert not launched()
    assert leads()
