"""A training that is killed again and again is the undisturbed one in the end, bit for bit."""

import os
import random
import signal

import pytest

from tenfold.experiments import checkpoint
from tenfold.experiments.runs import read_run

from .killing import Kill, Processes
from .test_training import assert_same, measured

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

EPOCHS, STEPS = 20, 4  # steps of an epoch
EVERY = 2


@pytest.fixture(scope="module")
def processes():
    with Processes() as running:
        yield running


def assert_same_folders(one, two):
    """All that a run leaves, without times."""
    records = [[measured(record) for record in read_run(folder).records] for folder in (one, two)]
    assert records[0] == records[1]
    contents = [checkpoint.read(folder / "checkpoint.pt") for folder in (one, two)]
    for key in ("model", "optimizer", "scheduler", "rank_history", "epoch", "step", "progress", "rollbacks"):
        assert_same(contents[0][key], contents[1][key])
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}


@pytest.mark.parametrize(("method", "kills"), [("tucker", 24), ("prune-magnitude", 8)])
def test_killed_at_random_moments_it_loses_no_more_than_the_last_steps(
    tiny, tmp_path, processes, method, kills
):
    own = {"adapt_every": 3} if method == "tucker" else {"compression": 0.8}
    config = tiny(method=method, epochs=EPOCHS, checkpoint_every=EVERY, **own)
    run = processes.run
    whole, parts, log = tmp_path / "whole", tmp_path / "parts", tmp_path / "log"
    assert run(config, whole, log) == 0
    *_, last = log.read_text().splitlines()
    events, writing = (int(number) for number in last.split()[1:])
    checkpoints = EPOCHS * STEPS // EVERY
    draw = random.Random(0)
    while_writing = 0
    for number in range(kills):
        log.unlink()
        saved = checkpoint.read(parts / "checkpoint.pt")["step"] if (parts / "checkpoint.pt").exists() else 0
        inside = number % 2 == 1
        # Within the next four steps, or the next two checkpoints: the training goes on in small pieces.
        limit = 2 * writing // checkpoints if inside else 4 * events // (EPOCHS * STEPS)
        assert run(config, parts, log, Kill(draw.randrange(limit), inside)) == -signal.SIGKILL
        begun, *steps = log.read_text().splitlines()
        assert begun == "started"
        assert [int(step) for step in steps] == list(range(saved + 1, saved + 1 + len(steps)))
        while_writing += bool(list(parts.glob(".checkpoint.*")))
        if (parts / "checkpoint.pt").exists():
            kept = checkpoint.read(parts / "checkpoint.pt")["step"]
            assert max([saved, *map(int, steps)]) - kept <= EVERY
    assert while_writing >= kills // 5, "few kills found a checkpoint half written"
    assert kept < EPOCHS * STEPS, "every kill came before the end"
    assert run(config, parts, log) == 0
    assert_same_folders(whole, parts)
