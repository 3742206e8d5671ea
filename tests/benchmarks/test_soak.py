"""The soak in small: what it measures is flat, and it notices what is not."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tenfold.optim import RiemannianSGD

from .scripts import BENCHMARKS, loaded

pytestmark = pytest.mark.filterwarnings("ignore::tenfold.optim.IllConditionedWarning")


@pytest.fixture(scope="module")
def soak():
    with loaded("soak.py") as names:
        return SimpleNamespace(**names)


@pytest.fixture(scope="module")
def samples(soak):
    """Of a fresh process: it counts all tensors and graphs that there are."""
    code = (
        "import json, runpy, sys, warnings; from dataclasses import asdict; warnings.simplefilter('ignore')\n"
        "soak = runpy.run_path(sys.argv[1])['soak']\n"
        "print(json.dumps([asdict(sample) for sample in soak(300, 6)]))"
    )
    command = [sys.executable, "-c", code, str(BENCHMARKS / "soak.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return [soak.Sample(**values) for values in json.loads(said)]


def test_memory_is_flat_and_bases_stay_orthonormal(soak, samples):
    assert soak.faults(samples) == []
    assert [sample.steps for sample in samples] == [50, 100, 150, 200, 250, 300]
    assert samples[-1].graphs == 0
    assert samples[-1].off_manifold < 1e-5
    assert samples[-1].off_tangent < 1e-5
    assert samples[-1].loss < 0.02


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensors": 10_000}, "tensors grew from"),
        ({"graphs": 1}, "graphs grew from 0 to 1"),
        ({"state": 1000}, "state grew from"),
        ({"objects": 10_000_000}, "objects grew from"),
        ({"private_mib": 1e6}, "private memory grew from"),
        ({"off_manifold": 0.1}, r"off_manifold reached 1.0e-01"),
        ({"off_tangent": float("nan")}, "off_tangent reached nan"),
        ({"risen": 3}, "ranks have risen only 3 times"),
        ({"fallen": 3}, "ranks have fallen only 3 times"),
    ],
)
def test_it_notices(soak, samples, change, message):
    (found,) = soak.faults([*samples[:-1], replace(samples[-1], **change)])
    assert found.startswith(message)


def test_it_notices_an_optimizer_that_keeps_graphs(soak, monkeypatch):
    kept = []
    step = RiemannianSGD.step

    def hoarding(self, closure=None):
        kept.append([p.detach().requires_grad_() * 2 for p in self.param_groups[0]["params"]])
        return step(self, closure)

    monkeypatch.setattr(RiemannianSGD, "step", hoarding)
    found = soak.faults(list(soak.soak(80, 4)))
    assert any(line.startswith("graphs grew") for line in found)
    assert any(line.startswith("tensors grew") for line in found)
