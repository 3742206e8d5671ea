"""Iterative magnitude pruning with rewinding: what goes, what comes back, and where a stopped run goes on."""

import pytest
import torch
from torch import nn

from tenfold.experiments import checkpoint
from tenfold.experiments.data import load
from tenfold.experiments.methods import make_optimizer, make_scheduler, schedule_over
from tenfold.experiments.pruning import prune_at_start, pruned_layers
from tenfold.experiments.rewinding import rewind_on_schedule
from tenfold.experiments.state import TrainingState
from tenfold.experiments.training import train
from tests.experiments.test_training import Diary, assert_same, measured

STEPS, ENDS, EARLY = 103, (20, 41, 61, 82, 103), 2


@pytest.fixture
def state(tiny):
    """A network with running statistics, of which one layer is pruned."""
    config = tiny(method="prune-imp", compression=0.9, schedule="cosine", lr=0.05)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 10))
    prune_at_start(model, config, ["3"], load("mnist", config.data_dir))
    optimizer = make_optimizer(config, model, STEPS)
    return TrainingState(config, model, optimizer, make_scheduler(config, optimizer, STEPS))


def take_step(state):
    state.optimizer.zero_grad()
    state.model.train()(torch.randn(8, 1, 8, 8)).square().mean().backward()
    state.optimizer.step()
    state.scheduler.step()
    state.step += 1


def trained(model):
    return {
        name: value.clone()
        for name, value in model.state_dict().items()
        if "early_values" not in name and "mask" not in name
    }


def test_everything_that_stays_goes_back(state):
    (layer,) = pruned_layers(state.model).values()
    early = {}
    for step in range(1, STEPS + 1):
        take_step(state)
        before, size = layer.weight_orig.detach().abs().clone(), layer.weight_mask.sum()
        present = layer.weight_mask.bool().clone()
        assert rewind_on_schedule(state, STEPS) == (step in ENDS[:-1])
        if step == EARLY:
            early = trained(state.model)
        if step in ENDS[:-1]:
            assert_same(trained(state.model), early)
            assert not state.optimizer.state
            kept = layer.weight_mask.bool()
            assert kept.sum() == round(0.1 ** ((ENDS.index(step) + 1) / 4) * kept.numel())
            assert not (kept & ~present).any(), "nothing comes back"
            assert before[kept].min() >= before[present & ~kept].max(), "the largest at the end of the round"
        else:
            assert layer.weight_mask.sum() == size
    assert float(layer.weight_mask.mean()) == pytest.approx(0.1, abs=1e-3)
    assert (trained(state.model)["0.weight"] - early["0.weight"]).abs().max() > 1e-3, "the last round trains"


def test_the_learning_rate_is_rewound_and_falls_to_nothing_in_every_round(state):
    rates = []
    for _ in range(STEPS):
        rates.append(state.optimizer.param_groups[0]["lr"])
        take_step(state)
        rewind_on_schedule(state, STEPS)
    parameter = nn.Parameter(torch.zeros(1))
    for begin, end in zip((0, *ENDS), ENDS, strict=False):
        skipped = EARLY if begin else 0
        optimizer = torch.optim.SGD([parameter], lr=0.05)
        scheduler = schedule_over(state.config, optimizer, skipped + end - begin)
        expected = []
        for _ in range(skipped + end - begin):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        assert rates[begin:end] == pytest.approx(expected[skipped:], rel=1e-6)
        assert rates[end - 1] < 0.01 * 0.05


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "constant"])
def test_a_run_stopped_between_rounds_goes_on_bit_for_bit(tiny, tmp_path, schedule):
    """64 steps: early values after step 1, rounds end after steps 12, 25, 38, 51."""
    config = tiny(
        method="prune-imp", compression=0.8, schedule=schedule, epochs=4, batch_size=4, checkpoint_every=5
    )
    whole = train(config, tmp_path / "whole")
    for stop_at in ((1, 3), (1, 14), (2, 10), (4, 7)):
        started = (tmp_path / "parts" / "checkpoint.pt").is_file()
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "parts", resume=started, observer=Diary(stop_at=stop_at))
        torch.manual_seed(12345)
    parts = train(config, tmp_path / "parts", resume=True)
    assert [measured(r) for r in parts.records] == [measured(r) for r in whole.records]
    one, two = (checkpoint.read(run.folder / "checkpoint.pt") for run in (whole, parts))
    for key in ("model", "optimizer", "scheduler"):
        assert_same(one[key], two[key])
    assert whole.last.compression_factored == pytest.approx(0.8, abs=1e-4)


def test_fewer_steps_than_rounds_are_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="'prune-imp' trains in 5 rounds, and this run has 4 steps"):
        train(tiny(method="prune-imp", compression=0.5, epochs=1), tmp_path)


def test_the_early_values_are_no_parameters_of_the_network(tiny, tmp_path):
    """What is reported is what the pruned network needs."""
    run = train(tiny(method="prune-imp", compression=0.8, epochs=2), tmp_path)
    assert run.last.dense_parameters == 61_706
    assert run.last.parameters == 61_706 - round(0.8 * 60_480)
