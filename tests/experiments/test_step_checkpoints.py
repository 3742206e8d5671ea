"""Checkpoints within an epoch: a run goes on in the middle of it, bit for bit."""

from dataclasses import replace

import pytest
import torch

from tenfold.experiments import checkpoint
from tenfold.experiments.config import TrainConfig
from tenfold.experiments.training import train

from .test_combinations import COMBINATIONS, config
from .test_training import Diary, assert_same, measured

STATE = ("model", "optimizer", "scheduler", "rank_history", "epoch", "step")


def assert_same_runs(one, two):
    """Metrics without times, and every number in the checkpoint."""
    assert [measured(record) for record in one.records] == [measured(record) for record in two.records]
    contents = [checkpoint.read(run.folder / "checkpoint.pt") for run in (one, two)]
    for key in STATE:
        assert_same(contents[0][key], contents[1][key])


def interrupted(run, folder, *stops):
    """A run that is stopped at steps, (epoch, step) each, and resumed until it is done."""
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            train(run, folder, resume=(folder / "checkpoint.pt").exists(), observer=Diary(stop_at=stop))
        torch.manual_seed(12345)  # what else the process draws must not matter
    diary = Diary()
    return train(run, folder, resume=True, observer=diary), diary


@pytest.mark.parametrize(("method", "optimizer"), [("tucker", "sgd"), *COMBINATIONS])
def test_a_run_goes_on_within_an_epoch_bit_for_bit(tiny, tmp_path, method, optimizer):
    run = config(tiny, method, optimizer, batch_size=8, epochs=2)  # 8 steps in an epoch
    whole = train(run, tmp_path / "whole")
    parts, diary = interrupted(replace(run, checkpoint_every=3), tmp_path / "parts", (1, 5), (2, 6))
    assert diary.steps[0] == (2, 5)  # after step 12 of the run
    assert_same_runs(whole, parts)


def test_augmentation_goes_on_bit_for_bit(tiny, tmp_path, cifar10_folder):
    run = tiny(
        data="cifar10",
        data_dir=str(cifar10_folder),
        model="vgg-small",
        method="dense",
        epochs=1,
        batch_size=8,
        checkpoint_every=1,
    )
    whole = train(run, tmp_path / "whole")
    parts, diary = interrupted(run, tmp_path / "parts", (1, 3))
    assert diary.steps == [(1, 3), (1, 4), (1, 5)]  # stopped before it was saved
    assert_same_runs(whole, parts)


def test_dropout_goes_on_bit_for_bit(tiny, tmp_path, monkeypatch):
    from tenfold.experiments import methods

    build = methods.build

    def with_dropout(*args, **kwargs):
        model = build(*args, **kwargs)
        model.fc3 = torch.nn.Sequential(torch.nn.Dropout(0.5), model.fc3)
        return model

    monkeypatch.setattr(methods, "build", with_dropout)
    run = tiny(method="dense", epochs=1, checkpoint_every=2)
    whole = train(run, tmp_path / "whole")
    parts, _ = interrupted(run, tmp_path / "parts", (1, 3))
    assert_same_runs(whole, parts)


def test_how_often_a_run_is_saved_does_not_change_it(tiny, tmp_path, monkeypatch):
    saved, save = [], checkpoint.save
    monkeypatch.setattr(
        checkpoint, "save", lambda path, state: (saved.append((state.epoch, state.step)), save(path, state))
    )
    runs = []
    for every in (None, 1, 3):
        saved.append(every)
        runs.append(train(tiny(epochs=2, checkpoint_every=every), tmp_path / str(every)))
    assert saved == [
        *(None, (1, 4), (2, 8)),
        *(1, (0, 1), (0, 2), (0, 3), (1, 4), (1, 5), (1, 6), (1, 7), (2, 8)),
        *(3, (0, 3), (1, 4), (1, 6), (2, 8)),
    ]
    assert_same_runs(runs[0], runs[1])
    assert_same_runs(runs[0], runs[2])


def test_it_may_be_changed_when_a_run_is_resumed(tiny, tmp_path):
    run = tiny(method="dense", epochs=2)
    whole = train(run, tmp_path / "whole")
    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        train(replace(run, checkpoint_every=3), folder, observer=Diary(stop_at=(1, 4)))
    assert checkpoint.read(folder / "checkpoint.pt")["step"] == 3
    assert_same_runs(whole, train(run, folder, resume=True))


def test_the_time_of_an_epoch_goes_on(tiny, tmp_path):
    run = tiny(method="dense", epochs=1, checkpoint_every=1)
    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path, observer=Diary(stop_at=(1, 4)))
    path = tmp_path / "checkpoint.pt"
    contents = checkpoint.read(path)
    assert contents["progress"]["seconds"] > 0
    contents["progress"]["seconds"] = 4000.0
    torch.save(contents, path)
    assert train(run, tmp_path, resume=True).last.seconds_per_step == pytest.approx(1000, rel=0.01)


def test_a_checkpoint_of_the_version_before_is_read(tiny, tmp_path):
    run = tiny(method="dense", epochs=2)
    whole = train(run, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path / "parts", observer=Diary(stop_at=(2, 1)))
    path = tmp_path / "parts" / "checkpoint.pt"
    contents = torch.load(path, weights_only=True)
    for key in ("progress", "rollbacks", "guard"):
        del contents[key]
    for key in ("on_nan", "checkpoint_every"):
        del contents["config"][key]
    torch.save(contents, path)
    assert_same_runs(whole, train(run, tmp_path / "parts", resume=True))


@pytest.mark.parametrize("value", [0, -3])
def test_a_distance_below_one_step_is_refused(value):
    with pytest.raises(ValueError, match=f"checkpoint_every must be at least 1, not {value}"):
        TrainConfig(checkpoint_every=value)


def test_it_counts_as_the_same_run_unless_a_rollback_depends_on_it():
    one, two = TrainConfig(checkpoint_every=5), TrainConfig(checkpoint_every=7)
    assert one.differences(two) == []
    one, two = replace(one, on_nan="rollback"), replace(two, on_nan="rollback")
    assert one.differences(two) == [("checkpoint_every", 5, 7)]
    assert ("on_nan", "rollback", "raise") in one.differences(TrainConfig())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_run_on_a_gpu_goes_on_within_an_epoch(tiny, tmp_path):
    run = tiny(device="cuda", epochs=2, checkpoint_every=1)
    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path, observer=Diary(stop_at=(1, 4)))  # looked at in the last step of an epoch alone
    assert checkpoint.read(tmp_path / "checkpoint.pt")["progress"]["cuda_random"] is not None
    assert [record.step for record in train(run, tmp_path, resume=True).records] == [4, 8]
