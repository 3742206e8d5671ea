"""The example of several processes runs, and another number of them goes on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "data_parallel.py"


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_and_then_one(tmp_path):
    def run(processes):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(processes),
        ]
        done = subprocess.run(
            [*command, str(EXAMPLE), "--out", str(tmp_path / "checkpoint"), "--steps", "60"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
            capture_output=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    first, second = run(2), run(1)
    assert "2 processes, steps 0 to 60" in first
    assert "1 processes, steps 60 to 120" in second
    assert float(second.split("loss ")[1].split(",")[0]) < float(first.split("loss ")[1].split(",")[0]) < 0.5
