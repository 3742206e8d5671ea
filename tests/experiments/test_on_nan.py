"""Runs in which steps are not finite: stopped, skipped, or back at the last checkpoint with other batches."""

import math
from dataclasses import replace
from itertools import chain
from types import MethodType

import pytest
import torch

from tenfold.experiments import checkpoint, epoch, stepping
from tenfold.experiments.batches import epoch_seed
from tenfold.experiments.config import TrainConfig
from tenfold.experiments.grid import run_id
from tenfold.experiments.observer import Observer
from tenfold.experiments.report import table
from tenfold.experiments.runs import read_run
from tenfold.experiments.training import Diverged, train

from .test_step_checkpoints import assert_same_runs, interrupted
from .test_training import Diary, assert_same

METHODS = ["dense", "tucker"]


class Notes(Diary):
    def __init__(self, stop_at=None):
        super().__init__(stop_at)
        self.notes = []

    def noted(self, message):
        self.notes.append(message)


@pytest.fixture
def poison(monkeypatch):
    """``poison(bad)`` makes the loss NaN wherever ``bad(state, labels)`` holds."""
    honest = stepping.loss_of

    def install(bad):
        def loss_of(state, images, labels):
            loss = honest(state, images, labels)
            return loss * math.nan if bad(state, labels) else loss

        monkeypatch.setattr(stepping, "loss_of", loss_of)

    return install


@pytest.mark.parametrize("method", METHODS)
def test_by_default_it_is_an_error(tiny, tmp_path, poison, method):
    poison(lambda state, labels: state.step == 5)
    with pytest.raises(Diverged, match="training diverged"):
        train(tiny(method=method), tmp_path)
    assert checkpoint.read(tmp_path / "checkpoint.pt")["step"] == 4


@pytest.mark.parametrize("method", METHODS)
def test_skipped_steps_are_counted_and_leave_weights_alone(tiny, tmp_path, poison, method):
    poison(lambda state, labels: state.step in (0, 5, 6))
    notes = Notes()
    run = train(tiny(method=method, epochs=2, on_nan="skip"), tmp_path, observer=notes)
    assert [record.skipped for record in run.records] == [1, 2]
    assert run.last.step == 8
    assert all(math.isfinite(record.train_loss) for record in run.records)
    assert notes.notes == [
        f"step {step} was skipped: the loss is nan; nothing was changed" for step in (1, 6, 7)
    ]
    rows = {row[0]: row[1:] for row in table([run])}
    assert rows["skipped steps"] == ["3"]
    assert "rollbacks" not in rows
    assert read_run(tmp_path).records == run.records
    saved = checkpoint.read(tmp_path / "checkpoint.pt")
    assert saved["guard"]["taken"] == 5
    assert saved["scheduler"]["last_epoch"] == 8  # the schedule goes on


def test_the_losses_are_those_of_the_steps_taken(tiny, tmp_path, poison):
    poison(lambda state, labels: state.step == 1)
    notes = Notes()
    run = train(tiny(method="dense", epochs=1, on_nan="skip"), tmp_path, observer=notes)
    taken = [loss for loss in notes.losses if math.isfinite(loss)]
    assert len(taken) == 3
    assert run.last.train_loss == pytest.approx(sum(taken) / 3, rel=1e-6)
    assert run.last.losses == pytest.approx([sum(taken) / 3], rel=1e-6)


def test_an_epoch_of_which_every_step_is_skipped(tiny, tmp_path, poison):
    poison(lambda state, labels: state.step < 4)
    run = train(tiny(method="dense", epochs=2, on_nan="skip"), tmp_path)
    assert math.isnan(run.records[0].train_loss)
    assert run.records[0].losses == []
    assert math.isfinite(run.last.train_loss)


def test_skipping_is_bounded(tiny, tmp_path, poison):
    poison(lambda state, labels: state.step >= 2)
    with pytest.raises(Diverged, match=r"10 steps were skipped \(max_in_a_row\).*in step 13; try a learning"):
        train(tiny(method="dense", epochs=9, on_nan="skip"), tmp_path)


def test_running_statistics_forget_a_step_that_was_left_out(tiny, cifar10_folder, tmp_path, monkeypatch):
    honest = stepping.loss_of

    def loss_of(state, images, labels):
        return honest(state, images * math.nan if state.step == 1 else images, labels)

    monkeypatch.setattr(stepping, "loss_of", loss_of)
    run = tiny(data="cifar10", data_dir=str(cifar10_folder), model="vgg-light", epochs=1, on_nan="skip")
    last = train(run, tmp_path).last
    assert last.skipped == 1
    assert math.isfinite(last.test_loss)


@pytest.mark.parametrize("at", [6, 8])
@pytest.mark.parametrize("where", ["weight", "state"])
@pytest.mark.parametrize("on_nan", ["raise", "skip", "rollback"])
def test_what_overflows_before_the_loss_does_is_not_saved(tiny, tmp_path, monkeypatch, on_nan, where, at):
    """It could not be resumed."""
    honest = stepping.take_step

    def take_step(state, images, labels):
        result = honest(state, images, labels)
        if state.step == at and not state.rollbacks:
            p = state.optimizer.param_groups[0]["params"][-1]
            spoiled = p.data if where == "weight" else state.optimizer.state[p]["momentum_buffer"]
            spoiled[0] = math.inf
        return result

    monkeypatch.setattr(epoch, "take_step", take_step)
    run = tiny(method="dense", epochs=2, on_nan=on_nan, checkpoint_every=2)
    if on_nan == "rollback":
        assert train(run, tmp_path).last.rollbacks == 1
    else:
        with pytest.raises(
            Diverged, match=f"NaN or infinity after step {at}: training diverged; try a learn"
        ):
            train(run, tmp_path)
    saved = checkpoint.read(tmp_path / "checkpoint.pt")
    assert saved["step"] == (8 if on_nan == "rollback" else at - 2)
    states = [saved["model"], *saved["optimizer"]["state"].values()]
    assert all(t.isfinite().all() for state in states for t in state.values() if isinstance(t, torch.Tensor))


@pytest.mark.parametrize("on_nan", ["raise", "skip", "rollback"])
def test_a_test_loss_that_is_not_finite_is_told(tiny, tmp_path, monkeypatch, on_nan):
    monkeypatch.setattr(epoch, "evaluate", lambda *_, **__: (math.nan, 0.1))
    notes = Notes()
    train(tiny(method="dense", epochs=1, on_nan=on_nan), tmp_path, observer=notes)
    assert notes.notes == ["the test loss is nan after epoch 1; try a learning rate below 0.02"]


@pytest.mark.parametrize("method", METHODS)
def test_skipping_resumes_bit_for_bit(tiny, tmp_path, poison, method):
    poison(lambda state, labels: state.step in (1, 4, 5))
    run = tiny(method=method, on_nan="skip", checkpoint_every=1)
    whole = train(run, tmp_path / "whole")
    parts, _ = interrupted(run, tmp_path / "parts", (1, 3), (2, 3))
    assert_same_runs(whole, parts)
    guards = [checkpoint.read(r.folder / "checkpoint.pt")["guard"] for r in (whole, parts)]
    assert guards[0] == guards[1] == {"taken": 9, "skipped": 3, "in_a_row": 0, "rollbacks": 0}


# Rollback --------------------------------------------------------------------------------------


class Batches(Observer):
    """Remembers what was drawn: the labels of every batch, by step and number of rollbacks."""

    def __init__(self):
        self.seen = {}

    def bad(self, steps, rollbacks):
        def bad(state, labels):
            self.seen[state.step, state.rollbacks] = labels.tolist()
            return state.step in steps and state.rollbacks < rollbacks

        return bad


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("every", [None, 2])
def test_a_rollback_draws_other_batches_from_the_last_checkpoint(tiny, tmp_path, poison, method, every):
    batches, notes = Batches(), Notes()
    poison(batches.bad(steps={7}, rollbacks=2))
    run = train(tiny(method=method, on_nan="rollback", checkpoint_every=every), tmp_path, observer=notes)
    back = 4 if every is None else 6
    assert [note.split("; ")[-1] for note in notes.notes] == [
        f"rollback {number} of 10, to step {back}" for number in (1, 2)
    ]
    assert "training diverged in step 8" in notes.notes[0]
    assert [(record.step, record.rollbacks) for record in run.records] == [(4, 0), (8, 2), (12, 0)]
    draws = [[batches.seen[step, number] for step in range(back, 8)] for number in (0, 1, 2)]
    assert draws[0] != draws[1] != draws[2] != draws[0]
    if every == 2:  # what is left of the epoch is drawn in another order
        assert len({tuple(sorted(chain.from_iterable(draw))) for draw in draws}) == 1
    rows = {row[0]: row[1:] for row in table([run])}
    assert rows["rollbacks"] == ["2"]
    assert "skipped steps" not in rows


def test_before_the_first_checkpoint_a_rollback_goes_to_the_start(tiny, tmp_path, poison):
    batches = Batches()
    poison(batches.bad(steps={2}, rollbacks=1))
    notes = Notes()
    run = train(tiny(epochs=1, on_nan="rollback"), tmp_path, observer=notes)
    assert notes.notes[0].endswith("rollback 1 of 10, to step 0")
    assert run.last.rollbacks == 1
    assert batches.seen[0, 0] != batches.seen[0, 1]


def test_the_same_run_goes_back_in_the_same_way(tiny, tmp_path, poison):
    config = tiny(on_nan="rollback", checkpoint_every=2)
    runs = []
    for name in ("one", "two"):
        poison(Batches().bad(steps={3, 9}, rollbacks=2))
        runs.append(train(config, tmp_path / name))
    assert_same_runs(*runs)


@pytest.mark.parametrize("stops", [[(1, 4)], [(2, 3), (2, 4), (3, 1)], [(3, 2), (3, 2)]])
def test_rollbacks_resume_bit_for_bit(tiny, tmp_path, poison, stops):
    config = tiny(on_nan="rollback", checkpoint_every=1)
    bad = Batches().bad(steps={6, 10}, rollbacks=2)
    poison(bad)
    whole = train(config, tmp_path / "whole")
    parts, _ = interrupted(config, tmp_path / "parts", *stops)
    assert_same_runs(whole, parts)
    for run in (whole, parts):
        assert checkpoint.read(run.folder / "checkpoint.pt")["rollbacks"] == 2


def test_a_batch_that_is_bad_in_itself_is_not_met_again(tiny, tmp_path, poison):
    """No count and no clock in it: what is bad is one set of images together."""
    met = []

    def bad(state, labels):
        key = tuple(sorted(labels.tolist()))
        if state.step == 5 and not met:
            met.append(key)
        return bool(met) and key == met[0]

    poison(bad)
    run = train(tiny(on_nan="rollback"), tmp_path)
    assert sum(record.rollbacks for record in run.records) >= 1
    assert run.last.epoch == 3


def test_rollbacks_are_bounded(tiny, tmp_path, poison):
    batches = Batches()
    poison(batches.bad(steps={5}, rollbacks=100))
    with pytest.raises(Diverged, match=r"in step 6, after 10 rollbacks; try a learning rate below"):
        train(tiny(method="dense", on_nan="rollback"), tmp_path)
    assert {rollbacks for step, rollbacks in batches.seen if step == 5} == set(range(11))
    assert checkpoint.read(tmp_path / "checkpoint.pt")["step"] == 4


@pytest.mark.parametrize("on_nan", ["skip", "rollback"])
@pytest.mark.parametrize("optimizer", ["sgd", "tdlrt"])
def test_a_run_in_which_all_is_finite_is_the_same_under_every_policy(tiny, tmp_path, on_nan, optimizer):
    config = tiny(optimizer=optimizer, epochs=2)
    one = train(config, tmp_path / "one")
    assert_same_runs(one, train(replace(config, on_nan=on_nan), tmp_path / "two"))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon", "tdlrt", "tdlrt-adamw", "tdlrt-muon"])
def test_a_decomposition_that_fails_counts(tiny, tmp_path, monkeypatch, optimizer):
    from tenfold.experiments import training

    make = training.make_optimizer

    def fails_once(config, model, steps):
        made = make(config, model, steps)
        honest, calls = type(made).step, []

        def step(self, closure=None):
            calls.append(1)
            if len(calls) == 3:
                raise torch.linalg.LinAlgError("linalg.svd: The algorithm failed to converge")
            return honest(self, closure)

        made.step = MethodType(step, made)
        return made

    monkeypatch.setattr(training, "make_optimizer", fails_once)
    run = train(tiny(optimizer=optimizer, epochs=1, on_nan="skip", schedule="constant"), tmp_path)
    assert run.last.skipped == 1
    with pytest.raises(Diverged, match="failed to converge"):
        train(tiny(optimizer=optimizer, epochs=1, schedule="constant"), tmp_path / "raise")


def test_seeds_after_rollbacks_are_others():
    seeds = {epoch_seed(s, e, r) for s in range(12) for e in range(12) for r in range(12)}
    assert len(seeds) == 12**3


def test_runs_of_earlier_versions_keep_their_identity():
    config = TrainConfig()
    assert "on_nan" not in config.identity()
    assert "checkpoint_every" not in config.identity()
    assert run_id(config) == "652b7dd03583"
    assert len({run_id(replace(config, on_nan=choice)) for choice in ("raise", "skip", "rollback")}) == 3


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="on_nan must be one of raise, skip, rollback, not 'ignore'"):
        TrainConfig(on_nan="ignore")


def test_checkpoints_of_the_policy_hold_plain_data(tiny, tmp_path):
    train(tiny(epochs=1, on_nan="skip"), tmp_path)
    contents = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert_same(contents["guard"], {"taken": 4, "skipped": 0, "in_a_row": 0, "rollbacks": 0})
