import json
from dataclasses import replace

import pytest
import torch

from tenfold.experiments import checkpoint
from tenfold.experiments.data import load
from tenfold.experiments.methods import make_network
from tenfold.experiments.observer import Observer
from tenfold.experiments.training import evaluate, train
from tests.experiments.conftest import write_mnist

METHODS = ["dense", "tucker"]


class Diary(Observer):
    """Remembers what it is told, and stops the run where it is asked to."""

    def __init__(self, stop_at: tuple[int, int] | None = None) -> None:
        self.stop_at = stop_at
        self.begun: tuple[int, int] | None = None
        self.steps: list[tuple[int, int]] = []
        self.losses: list[float] = []
        self.epochs: list[int] = []

    def started(self, config, steps_per_epoch, epochs_done):
        self.begun = (steps_per_epoch, epochs_done)

    def stepped(self, step):
        self.steps.append((step.epoch, step.step))
        self.losses.append(step.loss)
        if (step.epoch, step.step) == self.stop_at:
            raise KeyboardInterrupt

    def epoch_finished(self, record):
        self.epochs.append(record.epoch)


def measured(record) -> dict:
    """A record without what depends on the clock and the machine."""
    return {k: v for k, v in record.to_dict().items() if k not in ("seconds_per_step", "peak_memory")}


def assert_same(a, b) -> None:
    """Nested state, bit for bit."""
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, two in zip(a, b, strict=True):
            assert_same(one, two)
    else:
        assert a == b


@pytest.mark.parametrize("method", METHODS)
def test_a_run_learns_and_leaves_its_files(tiny, tmp_path, method):
    diary = Diary()
    config = tiny(method=method, epochs=16, lr=0.05)
    run = train(config, tmp_path / "run", observer=diary)
    assert run.last.test_accuracy >= 0.8
    assert run.last.train_loss < 0.5 * run.records[0].train_loss
    assert diary.begun == (4, 0)
    assert diary.steps == [(epoch, step) for epoch in range(1, 17) for step in range(1, 5)]
    assert diary.epochs == list(range(1, 17))
    assert [(r.epoch, r.step) for r in run.records] == [(e, 4 * e) for e in range(1, 17)]
    assert all(record.seconds_per_step > 0 for record in run.records)
    files = {"config.json", "metrics.jsonl", "checkpoint.pt", "report.md"}
    assert {path.name for path in run.folder.iterdir()} == files | (
        {"ranks.png"} if method == "tucker" else set()
    )
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == [record.to_dict() for record in run.records]
    assert json.loads((run.folder / "config.json").read_text()) == config.to_dict()


def test_the_dense_net_is_not_compressed(tiny, tmp_path):
    last = train(tiny(method="dense", epochs=1), tmp_path).last
    assert (last.parameters, last.dense_parameters, last.ranks) == (61_706, 61_706, {})
    assert (last.compression_convolutions, last.compression_factored, last.compression_network) == (0, 0, 0)


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides_everything(tiny, tmp_path, method):
    runs = [train(tiny(method=method, seed=s), tmp_path / str(i)) for i, s in enumerate((0, 0, 1))]
    one, two, three = ([measured(record) for record in run.records] for run in runs)
    assert one == two
    assert one != three


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "constant"])
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(tiny, tmp_path, method, schedule):
    config = tiny(method=method, schedule=schedule, epochs=4, weight_decay=1e-3)
    if method == "tucker":
        config = replace(config, adapt_every=3)  # out of step with the 4 steps of an epoch
    whole = train(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", observer=Diary(stop_at=(3, 2)))
    torch.manual_seed(12345)  # what else the process draws must not matter
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", resume=True, observer=Diary(stop_at=(4, 1)))
    diary = Diary()
    parts = train(config, tmp_path / "parts", resume=True, observer=diary)
    assert diary.begun == (4, 3)
    assert diary.epochs == [4]
    assert [measured(record) for record in parts.records] == [measured(record) for record in whole.records]
    one, two = (checkpoint.read(run.folder / "checkpoint.pt") for run in (whole, parts))
    for key in ("model", "optimizer", "scheduler", "rank_history", "epoch", "step"):
        assert_same(one[key], two[key])
    assert len((tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_dropout_resumes_bit_for_bit(tiny, tmp_path, method):
    rank = {"rank": 4} if method == "tucker" else {}
    config = tiny(method=method, model="alexnet", epochs=2, batch_size=32, **rank)
    whole = train(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", observer=Diary(stop_at=(2, 1)))
    parts = train(config, tmp_path / "parts", resume=True)
    assert measured(parts.last) == measured(whole.last)


def test_an_interruption_leaves_the_last_finished_epoch(tiny, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tiny(method="dense"), tmp_path, observer=Diary(stop_at=(2, 3)))
    assert checkpoint.read(tmp_path / "checkpoint.pt")["epoch"] == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "metrics.jsonl", "checkpoint.pt"}


def test_stopped_before_the_first_epoch_a_folder_can_be_used_again(tiny, tmp_path):
    config = tiny(method="dense", epochs=1)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, observer=Diary(stop_at=(1, 1)))
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        train(config, tmp_path, resume=True)
    assert train(config, tmp_path).last.epoch == 1


def test_metrics_ahead_of_the_checkpoint_are_not_doubled(tiny, tmp_path):
    config = tiny(method="dense", epochs=2)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, observer=Diary(stop_at=(2, 4)))
    line = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(line + line.replace('"epoch": 1', '"epoch": 2'))
    train(config, tmp_path, resume=True)
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert epochs == [1, 2]


def test_resuming_a_finished_run_only_writes_its_report_again(tiny, tmp_path):
    config = tiny(method="dense", epochs=1)
    before = train(config, tmp_path)
    (tmp_path / "report.md").unlink()
    diary = Diary()
    assert train(config, tmp_path, resume=True, observer=diary).records == before.records
    assert diary.steps == []
    assert (tmp_path / "report.md").exists()


def test_a_folder_with_a_run_is_not_overwritten(tiny, tmp_path):
    train(tiny(method="dense", epochs=1), tmp_path)
    with pytest.raises(ValueError, match="already holds a run: resume it with --resume"):
        train(tiny(method="dense", epochs=1), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "vgg-small"}, "trained with model 'lenet5' instead of 'vgg-small'"),
        ({"seed": 5, "lr": 0.5}, r"lr 0\.02 instead of 0\.5, seed 0 instead of 5"),
        ({"epochs": 9}, "epochs 1 instead of 9"),
        ({"method": "tucker"}, "method 'dense' instead of 'tucker'"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tiny, tmp_path, change, message):
    train(tiny(method="dense", epochs=1), tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        train(tiny(**{"method": "dense", "epochs": 1, **change}), tmp_path, resume=True)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_whose_tensors_do_not_fit_is_refused(tiny, tmp_path):
    config = tiny(method="dense", epochs=1)
    train(config, tmp_path)
    path = tmp_path / "checkpoint.pt"
    contents = checkpoint.read(path)
    contents["model"]["fc3.weight"] = torch.zeros(3, 3)
    torch.save(contents, path)
    with pytest.raises(ValueError, match=r"does not fit the network 'lenet5'.*fc3") as caught:
        train(config, tmp_path, resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
def test_a_truncated_checkpoint_is_named(tiny, tmp_path, keep):
    config = tiny(method="dense", epochs=1)
    train(config, tmp_path)
    path = tmp_path / "checkpoint.pt"
    raw = path.read_bytes()
    path.write_bytes(raw[: int(keep * len(raw))])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is truncated or not a checkpoint") as caught:
        train(config, tmp_path, resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("contents", [b"hello", {"weights": 1}, [1, 2]])
def test_a_file_that_is_no_checkpoint_is_named(tiny, tmp_path, contents):
    path = tmp_path / "checkpoint.pt"
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    else:
        torch.save(contents, path)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is .*not a checkpoint"):
        train(tiny(), tmp_path, resume=True)


@pytest.mark.parametrize("method", METHODS)
def test_the_checkpoint_holds_tensors_and_plain_data_only(tiny, tmp_path, method):
    train(tiny(method=method, epochs=1), tmp_path)
    contents = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert contents["config"]["method"] == method
    assert contents["torch"] == str(torch.__version__)


def test_the_checkpoint_gives_the_accuracy_of_its_epoch(tiny, tmp_path):
    config = tiny(method="dense", epochs=2)
    run = train(config, tmp_path)
    data = load("mnist", config.data_dir)
    model = make_network(config, data)
    model.load_state_dict(checkpoint.read(tmp_path / "checkpoint.pt")["model"])
    assert model.training
    loss, accuracy = evaluate(model, data)
    assert loss == pytest.approx(run.last.test_loss, rel=1e-5)  # the layout in memory may differ
    assert accuracy == run.last.test_accuracy
    assert model.training  # left in the mode it was in


def test_evaluation_against_plain_torch(tiny):
    config = tiny(method="dense")
    data = load("mnist", config.data_dir)
    torch.manual_seed(0)
    model = make_network(config, data)
    loss, accuracy = evaluate(model, data)
    logits = model.eval()(data.normalise(data.test.images)).detach()
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, data.test.labels).item(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(1) == data.test.labels).float().mean().item())


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_autocast_trains_too(tiny, tmp_path, method):
    run = train(tiny(method=method, amp=True, epochs=16, lr=0.05), tmp_path)
    assert run.last.test_accuracy >= 0.7
    model = checkpoint.read(tmp_path / "checkpoint.pt")["model"]
    assert model["conv1.weight"].dtype == torch.float32


@pytest.mark.parametrize("name", ["vgg-small", "resnet18"])
def test_networks_with_normalisation_and_colour(cifar10_folder, tmp_path, tiny, name):
    config = tiny(
        data="cifar10", data_dir=str(cifar10_folder), model=name, method="dense", epochs=1, batch_size=20
    )
    assert train(config, tmp_path).last.step == 2


def test_learning_rate_follows_the_schedule(tiny, tmp_path):
    rates = {
        s: train(tiny(method="dense", schedule=s, lr=0.01), tmp_path / s)
        for s in ("one-cycle", "cosine", "constant")
    }
    lr = {name: [record.lr for record in run.records] for name, run in rates.items()}
    assert lr["constant"] == [0.01] * 3
    assert 0.01 > lr["cosine"][0] > lr["cosine"][1] > lr["cosine"][2] > 0
    assert lr["one-cycle"][0] > lr["one-cycle"][1] > lr["one-cycle"][2] > 0
    assert lr["one-cycle"][2] < 1e-4


def test_divergence_is_an_error_that_says_what_to_do(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"training diverged; try a learning rate below 1e\+30"):
        train(tiny(method="dense", lr=1e30, schedule="constant"), tmp_path)


@pytest.mark.filterwarnings("ignore")  # what torch says about drivers is not the point
@pytest.mark.parametrize("device", ["quantum", "cuda:99"])
def test_a_device_that_is_not_there(tiny, tmp_path, device):
    with pytest.raises(ValueError, match=f"device '{device}' is not available here"):
        train(tiny(device=device), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_batch_larger_than_the_data(tiny, tmp_path):
    with pytest.raises(ValueError, match="batch_size 65 is more than the 64 training images"):
        train(tiny(batch_size=65), tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_on_a_gpu(tiny, tmp_path, method):
    run = train(tiny(method=method, epochs=16, lr=0.05, device="cuda"), tmp_path)
    assert run.last.test_accuracy >= 0.8
    assert run.last.peak_memory is not None
    assert run.last.peak_memory < 2**30


@pytest.mark.parametrize("images", [32, 96])
def test_a_run_does_not_go_on_with_another_number_of_steps(tiny, tmp_path, images):
    with pytest.raises(KeyboardInterrupt):
        train(tiny(method="dense"), tmp_path / "run", observer=Diary(stop_at=(2, 1)))
    other = str(write_mnist(tmp_path / "data", train=images))
    with pytest.raises(ValueError, match=r"does not fit the data set 'mnist': 4 steps are done, .* would be"):
        train(tiny(method="dense", data_dir=other), tmp_path / "run", resume=True)
