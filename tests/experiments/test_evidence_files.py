"""The sweeps of the documentation: what they ask for, and that every kind of run in them trains."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from tenfold.cli import main
from tenfold.experiments import methods
from tenfold.experiments.config import TrainConfig
from tenfold.experiments.grid import read_sweep
from tenfold.experiments.models import _vgg
from tenfold.experiments.training import train

FILES = sorted((Path(__file__).parents[2] / "docs" / "evidence").glob("*.yaml"))
SWEEPS = {file.stem: read_sweep(file) for file in FILES}
LOOSE = {"loose-tucker", "loose-cp", "loose-tt", "loose-matrix"}
PRUNED = {"prune-snip", "prune-grasp", "prune-magnitude", "prune-imp"}
ALL = {"dense", "tucker"} | LOOSE | PRUNED
METHODS = {
    "cifar10-full": ALL,
    "cifar10-large": {"dense", "tucker", "loose-tucker"},
    "cifar10-ranks": {"tucker", "loose-tucker"},
    "cifar10-reduced": {"dense", "tucker", "loose-tucker"},
    "cifar10-small": ALL,
    "mnist-decay": {"tucker", "loose-tucker", "loose-cp"},
    "mnist-lenet5": ALL - {"prune-imp"},
    "mnist-ranks": {"tucker", "loose-tucker"},
    "mnist-start": {"tucker"},
    "tinyimagenet-full": ALL,
}
PROTOCOL = {  # networks, epochs, seeds
    "cifar10-full": ({"alexnet", "vgg16", "resnet18"}, 120, 20),
    "cifar10-large": ({"vgg16", "resnet18"}, 30, 1),
    "cifar10-ranks": ({"vgg-light"}, 10, 3),
    "cifar10-reduced": ({"vgg16", "resnet18", "alexnet"}, 2, 1),
    "cifar10-small": ({"vgg-light", "alexnet"}, 10, 3),
    "tinyimagenet-full": ({"resnet18"}, 120, 20),
}
FOLDERS = {"mnist": "mnist_folder", "cifar10": "cifar10_folder", "tinyimagenet": "tiny_imagenet_folder"}


def kind(config: TrainConfig) -> tuple:
    """What makes a run another one than in size, length, seed, network and data."""
    sizes = (config.tau is None, config.compression is None, config.decay is None, config.adapt_every == 0)
    ending = (config.start_compression is not None, config.oversampling is not None, config.ranks is not None)
    return config.method, config.optimizer, config.schedule, config.amp, *ending, *sizes


CONFIGS = [entry.config for sweep in SWEEPS.values() for entry in sweep.entries]
KINDS = {kind(config): config for config in reversed(CONFIGS)}
NETWORKS = {(config.data, config.model): config for config in CONFIGS if config.optimizer == "tdlrt"}


def test_every_file_has_its_line_here():
    assert sorted(METHODS) == [file.stem for file in FILES]


@pytest.mark.parametrize("stem", METHODS)
def test_the_methods_and_the_protocol(stem):
    configs = [entry.config for entry in SWEEPS[stem].entries]
    assert SWEEPS[stem].name == stem
    assert {config.method for config in configs} == METHODS[stem]
    if stem in PROTOCOL:
        models, epochs, seeds = PROTOCOL[stem]
        assert {config.model for config in configs} == models
        assert {config.epochs for config in configs} == {epochs}
        assert {config.seed for config in configs} == set(range(seeds))


@pytest.mark.parametrize("stem", METHODS)
def test_every_method_has_as_many_rates_to_choose_from(stem):
    assert len({len(entry.trials) for entry in SWEEPS[stem].entries}) == 1


@pytest.mark.parametrize("stem", ["cifar10-full", "cifar10-small", "tinyimagenet-full"])
def test_every_method_stands_at_four_compressions_or_more(stem):
    sizes: dict[tuple[str, str], set] = {}
    for entry in SWEEPS[stem].entries:
        config = entry.config
        sizes.setdefault((config.method, config.optimizer), set()).add((config.tau, config.compression))
    few = {key for key, of_method in sizes.items() if len(of_method) < 4}
    muon = {("dense", "muon")} if stem == "cifar10-small" else set()
    assert few == {("dense", "sgd"), ("dense", "adamw")} | muon


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_the_head_of_a_file_says_how_much_it_asks_for(file, tmp_path, capsys):
    head = file.read_text(encoding="utf-8")
    found = re.search(r"^# ([\d,]+) runs and ([\d,]+) trials of learning rates\.", head, flags=re.MULTILINE)
    assert found is not None
    runs, trials = (int(number.replace(",", "")) for number in found.groups())
    assert main(["sweep", str(file), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert (
        f"{file.stem}: {trials} of {trials} trials and {runs} of {runs} runs to do" in capsys.readouterr().out
    )


def narrow(name: str, *, in_channels: int, num_classes: int, image_size: int) -> nn.Module:
    """A network in the place of the named one that trains in a moment."""
    return _vgg((8, "pool", 16, 16, "pool", 16), in_channels, num_classes, image_size)


@pytest.mark.parametrize("config", KINDS.values(), ids=["-".join(map(str, key)) for key in KINDS])
def test_every_kind_of_run_trains(config, tmp_path, request, monkeypatch):
    """One epoch of a few steps with everything else as the file has it."""
    monkeypatch.setattr(methods, "build", narrow)
    folder = request.getfixturevalue(FOLDERS[config.data])
    short = replace(config, data_dir=str(folder), epochs=1, batch_size=5, device="cpu")
    if config.adapt_every:
        short = replace(short, adapt_every=2)  # of eight steps
    if config.ranks is not None:
        short = replace(short, ranks="conv2=4x3,conv3=5x4,conv4=3x5")
    run = train(short, tmp_path / "run")
    assert run.last.train_loss > 0
    if config.compression is not None:
        assert run.last.compression_factored >= config.compression - 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("key", NETWORKS, ids="-".join)
def test_every_network_trains_at_its_size(key, tmp_path, request):
    config = NETWORKS[key]
    folder = request.getfixturevalue(FOLDERS[config.data])
    short = replace(config, data_dir=str(folder), epochs=1, batch_size=8, device="cpu")
    assert train(short, tmp_path / "run").last.train_loss > 0
