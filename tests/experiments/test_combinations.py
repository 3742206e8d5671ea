"""Every way to store weights with every way to move them: trained, stopped and resumed."""

import pytest
import torch

from tenfold.experiments import checkpoint
from tenfold.experiments.combinations import METHODS, optimizers_of
from tenfold.experiments.training import Diverged, train

from .test_training import Diary, assert_same, measured

COMBINATIONS = [(m, o) for m in METHODS for o in optimizers_of(m) if (m, o) != ("tucker", "sgd")]

SLOW = [("tucker", "tdlrt"), ("loose-matrix", "sgd"), ("prune-imp", "sgd")]


def config(tiny, method, optimizer, **given):
    own = {} if method == "dense" else {"compression": 0.8}
    own |= {"adapt_every": 3} if method == "tucker" else {}
    return tiny(**{"method": method, "optimizer": optimizer, "lr": 0.01, "epochs": 2, **own, **given})


@pytest.mark.parametrize(("method", "optimizer"), COMBINATIONS)
def test_it_goes_on_bit_for_bit(tiny, tmp_path, method, optimizer):
    run = config(tiny, method, optimizer)
    whole = train(run, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path / "parts", observer=Diary(stop_at=(2, 2)))
    torch.manual_seed(12345)
    parts = train(run, tmp_path / "parts", resume=True)
    assert [measured(record) for record in parts.records] == [measured(record) for record in whole.records]
    one, two = (checkpoint.read(run.folder / "checkpoint.pt") for run in (whole, parts))
    for key in ("model", "optimizer", "rank_history"):
        assert_same(one[key], two[key])


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [
        *(("tucker", "adamw"), ("tucker", "muon"), ("tucker", "tdlrt"), ("tucker", "tdlrt-adamw")),
        ("tucker", "tdlrt-muon"),
        *(("loose-tucker", "sgd"), ("loose-cp", "adamw"), ("loose-tt", "adamw"), ("loose-matrix", "sgd")),
        *(("prune-snip", "sgd"), ("prune-grasp", "sgd"), ("prune-magnitude", "sgd"), ("prune-imp", "sgd")),
    ],
)
def test_it_learns_at_the_compression_asked_for(tiny, tmp_path, method, optimizer):
    lr = 0.01 if "adam" in optimizer else 0.1 if (method, optimizer) in SLOW else 0.03
    run = train(config(tiny, method, optimizer, epochs=12, lr=lr), tmp_path)
    assert run.last.train_loss < 0.9 * run.records[0].train_loss
    assert 0.8 - 1e-3 <= run.last.compression_factored < 0.82
    stored = (1 - run.last.compression_factored) * (2_400 + 48_000 + 10_080)
    assert run.last.parameters == 61_706 - 60_480 + round(stored)
    assert run.last.dense_parameters == 61_706


def falling(tiny, folder, optimizer):
    """Compressions after each of eight epochs, from 0.5 to 0.9."""
    run = config(tiny, "tucker", optimizer, epochs=8, compression=0.9, start_compression=0.5)
    return [record.compression_factored for record in train(run, folder).records]


def test_ranks_fall_to_the_compression_by_the_middle(tiny, tmp_path):
    reached = falling(tiny, tmp_path, "adamw")
    assert 0.5 < reached[0] < reached[1] < reached[2] < reached[3]
    assert reached[3:] == [reached[3]] * 5
    assert 0.9 <= reached[-1] < 0.92


@pytest.mark.parametrize("optimizer", ["sgd", "tdlrt"])
def test_spare_directions_last_until_the_middle(tiny, tmp_path, optimizer):
    sizes = {"compression": None, "rank": 0.5, "tau": 0.6, "adapt_every": 1}
    plain, spare = (
        train(config(tiny, "tucker", optimizer, epochs=4, **sizes, **more), tmp_path / name).records
        for name, more in (("plain", {}), ("spare", {"oversampling": 2}))
    )
    assert spare[0].compression_factored < plain[0].compression_factored
    assert spare[1].compression_factored > spare[0].compression_factored
    assert [record.ranks for record in spare[2:]] == [spare[1].ranks] * 2


@pytest.mark.parametrize(
    ("given", "least", "lowest"),
    [
        ({"tau": 0.95, "rank": 0.5}, None, 1),
        ({"tau": 0.95, "rank": 0.5}, 3, 3),
        ({"compression": 0.975}, 1, 1),
        ({"compression": 0.95}, 3, 3),
    ],
)
def test_decisions_leave_the_lowest_rank(tiny, tmp_path, given, least, lowest):
    given = {"compression": None, **given}
    run = config(tiny, "tucker", "sgd", **given, adapt_every=1, min_rank=least)
    ranks = train(run, tmp_path / "run").last.ranks
    assert min(min(rank) for rank in ranks.values()) == lowest


def test_a_compression_below_the_lowest_ranks_is_refused(tiny, tmp_path):
    run = config(tiny, "tucker", "sgd", compression=0.975, adapt_every=1)
    with pytest.raises(ValueError, match="lower min_rank or compression"):
        train(run, tmp_path / "run")


@pytest.mark.parametrize(
    "more", [{"start_compression": 0.5}, {"oversampling": 2}], ids=lambda more: next(iter(more))
)
def test_a_run_too_short_for_its_decisions_is_refused(tiny, tmp_path, more):
    run = config(tiny, "tucker", "sgd", compression=0.9, adapt_every=5, **more)
    with pytest.raises(ValueError, match="no ranks are decided between step 0 and the middle of the 8 steps"):
        train(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_ranks_fall_where_bases_are_augmented_between(tiny, tmp_path):
    """There an epoch may end between an augmentation and the truncation that follows it."""
    reached = falling(tiny, tmp_path, "tdlrt")
    assert reached[4:] == [reached[4]] * 4
    assert 0.9 <= reached[-1] < 0.92


def test_the_losses_of_a_record_average_its_steps(tiny, tmp_path):
    diary = Diary()
    record = train(tiny(method="dense", batch_size=4, epochs=1), tmp_path, observer=diary).last  # 16 steps
    means = [sum(diary.losses[:10]) / 10, sum(diary.losses[10:]) / 6]
    assert record.losses == pytest.approx(means, rel=1e-5)


def test_divergence_is_told_apart_from_other_mistakes(tiny, tmp_path):
    with pytest.raises(Diverged):
        train(tiny(method="dense", lr=1e30, schedule="constant"), tmp_path)
