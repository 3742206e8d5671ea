"""atheris on readers that parse bytes themselves; part of ``pytest -m deep tests/hostile``."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNS = 2_000


@pytest.mark.deep
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
@pytest.mark.parametrize("kind", ["adapter", "checkpoint", "cifar", "idx", "idx-gz", "peft-config", "sweep"])
def test_inputs_that_reach_new_lines(kind, tmp_path):
    command = [sys.executable, "-m", "tests.hostile.coverage_guided", kind, str(tmp_path), f"-runs={RUNS}"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    done = re.search(r"Done (\d+) runs", found.stderr)
    assert done, found.stderr[-3000:]
    print(f"{kind}: {done[1]} inputs")
    assert int(done[1]) >= RUNS
