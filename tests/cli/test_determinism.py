"""The same seed gives the same bits, in whatever process."""

import json
import os
import subprocess
import sys

import pytest
import torch

VARYING = ("seconds_per_step", "peak_memory")  # of the clock and the machine


def train(arguments, folder, hash_seed):
    """A process whose hashes, and so the order of its sets, are others."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": str(hash_seed)}
    command = [sys.executable, "-m", "tenfold", *arguments, "--out", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)


def records(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in VARYING} for line in lines]


def tensors(thing):
    """All tensors in nested state, in order."""
    if isinstance(thing, torch.Tensor):
        return [thing]
    values = thing.values() if isinstance(thing, dict) else thing if isinstance(thing, list | tuple) else []
    return [tensor for value in values for tensor in tensors(value)]


@pytest.mark.parametrize("optimizer", ["sgd", "tdlrt-adamw"])
def test_two_processes_compute_the_same_bits(quick, tmp_path, optimizer):
    arguments = quick("--optimizer", optimizer, "--seed", "3", "--adapt-every", "3")
    folders = [tmp_path / "one", tmp_path / "two"]
    processes = [train(arguments, folder, number) for number, folder in enumerate(folders)]
    assert [process.wait(180) for process in processes] == [0, 0]
    one, two = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in folders)
    assert records(folders[0]) == records(folders[1])
    assert len(tensors(one)) > 10
    for a, b in zip(tensors(one), tensors(two), strict=True):
        assert torch.equal(a, b)
    assert one["rank_history"] == two["rank_history"]
