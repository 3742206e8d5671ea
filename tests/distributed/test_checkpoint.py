"""Checkpoints of several processes, read in another number of them."""

import json
import shutil

import pytest
import torch
from torch import nn

from tenfold.distributed import load_checkpoint, save_checkpoint
from tenfold.nn import Conv2d, Embedding, Linear, fuse_normalization
from tenfold.optim import RankAdaptation, RiemannianSGD
from tests.distributed.launch import launch
from tests.distributed.shards import OPTIMIZERS, STEPS, load_and_go_on, train_and_save
from tests.distributed.trainings import batch, dense, network, ranks

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    return folder, *launch(train_and_save, 2, folder / "store", str(folder))


@pytest.fixture(scope="module", params=[1, 4])
def resumed(request, saved, tmp_path_factory):
    if request.param == 1:
        return load_and_go_on(str(saved[0]))
    return launch(load_and_go_on, request.param, tmp_path_factory.mktemp("again") / "store", str(saved[0]))[0]


def test_training_goes_on_in_another_number_of_processes(saved, resumed):
    assert resumed
    for (_, how, kind), found in resumed.items():
        expected = saved[1][how, kind]
        torch.testing.assert_close(found["losses"], expected["losses"][STEPS // 2 :], rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(found["dense"], expected["dense"], rtol=1e-7, atol=1e-9)
        assert found["extra"] == {"step": STEPS // 2, "tags": ["a"]}


def test_buffers_are_those_of_process_0(saved):
    (here, found), (there, again) = (result["statistics"] for result in saved[1:])
    assert not torch.equal(here["1.running_mean"], there["1.running_mean"])
    torch.testing.assert_close((found, again), (here, here), rtol=0, atol=0)


def test_a_folder_is_not_overwritten(saved):
    assert "ddp-sgd exists" in saved[1]["again"]


@pytest.fixture
def one(tmp_path):
    """A training in one process, and its checkpoint."""
    net = network()
    optimizer = OPTIMIZERS["sgd"](net)
    x, y = batch(0)
    (net(x) - y).square().mean().backward()
    optimizer.step()
    save_checkpoint(tmp_path / "one", net, optimizer)
    return net, optimizer, tmp_path / "one"


@pytest.mark.parametrize("fused", [True, False])
def test_a_normalisation_inside_of_a_convolution(tmp_path, fused):
    def made():
        model = nn.Sequential(Conv2d(6, 6, 3, rank=2), nn.BatchNorm2d(6))
        return model, RiemannianSGD(model.parameters(), lr=0.1, momentum=0.9)

    (model, optimizer), (other, another) = made(), made()
    assert fuse_normalization(model) == 1
    if fused:
        fuse_normalization(other)
    model(torch.randn(2, 6, 5, 5)).square().sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path / "saved", model, optimizer)
    load_checkpoint(tmp_path / "saved", other, another)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
        assert all(torch.equal(v, another.state[q][k]) for k, v in optimizer.state[p].items())


def snapshot(net, optimizer):
    return (
        ranks(net),
        {k: v.clone() for k, v in dense(net).items()},
        [v.clone() for s in optimizer.state.values() for v in s.values()],
    )


def assert_refused(folder, words, net=None, kind="sgd"):
    net = net or network(3)
    optimizer = OPTIMIZERS[kind](net) if kind else None
    x, y = batch(1)
    if optimizer is not None and isinstance(net[0], type(network()[0])):
        (net(x) - y).square().mean().backward()
        optimizer.step()
    before = snapshot(net, optimizer)
    with pytest.raises(ValueError, match=words):
        load_checkpoint(folder, net, optimizer)
    torch.testing.assert_close(snapshot(net, optimizer), before, rtol=0, atol=0)


def test_one_process_bit_for_bit(one):
    net, optimizer, folder = one
    other = network(4)
    fresh = RiemannianSGD(other.parameters(), lr=torch.tensor(7.0), rank_adaptation=RankAdaptation(0.5))
    assert load_checkpoint(folder, other, fresh) == {}
    assert fresh.param_groups[0]["lr"] == 0.02
    assert fresh.param_groups[0]["rank_adaptation"] == optimizer.param_groups[0]["rank_adaptation"]
    for number in range(1, 5):
        x, y = batch(number)
        for model, moving in ((net, optimizer), (other, fresh)):
            moving.zero_grad()
            (model(x) - y).square().mean().backward()
            moving.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_nothing_is_pickled(one):
    assert {path.suffix for path in one[2].iterdir()} == {".safetensors"}


def test_missing():
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_checkpoint("nowhere", network())


def test_a_truncated_file(one):
    (file,) = one[2].iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    assert_refused(one[2], "is damaged")


def test_a_foreign_file(one, tmp_path):
    from safetensors.torch import save_file

    (file,) = one[2].iterdir()
    save_file({"model.0.weight": torch.zeros(3)}, file)
    assert_refused(one[2], "not a checkpoint of save_checkpoint")


def forged(folder, change):
    """The checkpoint with one tensor exchanged."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    (file,) = folder.iterdir()
    with safe_open(file, "pt") as handle:
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    change(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("model.3.weight_rank", torch.tensor([2**31]), "ranks that 3.weight cannot take"),
        ("model.3.weight_rank", torch.tensor([-1]), "ranks that 3.weight cannot take"),
        ("model.3.weight_rank", torch.tensor([2, 2]), "no 1 ranks for 3.weight"),
        ("model.3.weight_rank", torch.tensor([1]), "has 3.weight with the shape"),
        ("model.5.bias", torch.zeros(5), "has 5.bias with the shape"),
        ("model.9.bias", torch.zeros(5), "unexpected .'9.bias'"),
        ("optimizer.5.bias.momentum_buffer", torch.zeros(4000), "a state momentum_buffer"),
        ("optimizer.9.bias.momentum_buffer", torch.zeros(4), "for '9.bias'"),
        ("optimizer.3.weight.momentum_buffer", torch.zeros(7), "does not fit"),
    ],
)
def test_forged_contents(one, name, value, words):
    forged(one[2], lambda tensors: tensors.update({name: value}))
    assert_refused(one[2], words)


def rewritten(tensors, **changes):
    plain = json.loads(bytes(tensors["tenfold"].tolist()))
    plain |= changes
    tensors["tenfold"] = torch.frombuffer(bytearray(json.dumps(plain).encode()), dtype=torch.uint8)


def test_no_optimizer_in_the_file(one):
    forged(one[2], lambda tensors: rewritten(tensors, groups=None))
    assert_refused(one[2], "holds no optimizer")


def test_another_format(one):
    forged(one[2], lambda tensors: rewritten(tensors, format=99))
    assert_refused(one[2], "not a checkpoint of this version")


def test_another_model(one):
    net = nn.Sequential(Linear(4, 3, rank=1), nn.Linear(3, 2))
    before = dense(net)
    with pytest.raises(ValueError, match=r"no 1 ranks for 0\.weight"):
        load_checkpoint(one[2], net)
    assert dense(net).keys() == before.keys()


def test_a_model_alone_takes_the_saved_ranks(one):
    net = network(8)
    load_checkpoint(one[2], net)
    assert ranks(net) == ranks(one[0])
    torch.testing.assert_close(dense(net), dense(one[0]), rtol=0, atol=0)


def test_strangers_and_odd_data_are_refused(tmp_path):
    net, other = network(), nn.Linear(2, 2)
    stranger = RiemannianSGD(other.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="not the model's"):
        save_checkpoint(tmp_path / "x", net, stranger)
    with pytest.raises(TypeError, match="cannot be saved"):
        save_checkpoint(tmp_path / "x", net, extra={"x": object()})
    assert not list(tmp_path.iterdir())


def test_a_writer_that_was_killed_leaves_no_checkpoint(one, tmp_path):
    net, optimizer, folder = one
    half = tmp_path / ".next.writing"
    shutil.copytree(folder, half)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "next", net, optimizer)
    save_checkpoint(tmp_path / "next", net, optimizer)
    assert not half.exists()


def test_a_rate_in_a_tensor_stays_one(tmp_path):
    net = network()
    save_checkpoint(tmp_path / "x", net, RiemannianSGD(net.parameters(), lr=torch.tensor(0.3)))
    fresh = RiemannianSGD(net.parameters(), lr=0.1)
    load_checkpoint(tmp_path / "x", net, fresh)
    assert torch.equal(fresh.param_groups[0]["lr"], torch.tensor(0.3))


class Tied(nn.Module):
    """An embedding and a head of one weight."""

    def __init__(self, head, weight):
        super().__init__()
        self.embedding, self.head = weight, head
        self.head.weight = self.embedding.weight


def tied(kind, rank):
    torch.manual_seed(rank)
    if kind == "dense":
        return Tied(nn.Linear(8, 20), nn.Embedding(20, 8))
    if kind == "low-rank":
        return Tied(Linear(8, 20, rank=rank), Embedding(20, 8, rank=rank, format="fixed-rank"))
    layer = Linear(8, 8, rank=rank)
    return nn.ModuleDict({"a": layer, "b": layer})


@pytest.mark.parametrize("kind", ["dense", "low-rank", "module"])
def test_tied_weights_are_saved_and_read_at_other_ranks(kind, tmp_path):
    model, other = tied(kind, 3), tied(kind, 2)
    save_checkpoint(tmp_path / "saved", model)
    load_checkpoint(tmp_path / "saved", other)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    assert len(list(other.parameters())) == len(list(model.parameters()))


def test_what_cannot_be_written_or_read_is_an_ordinary_error(tmp_path, monkeypatch):
    """The library's own error is no ``Exception``, and says nothing of what went wrong."""
    import torch.distributed.checkpoint as library

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    model = Linear(8, 8, rank=2)
    save_checkpoint(tmp_path / "saved", model)
    with monkeypatch.context() as patched:
        patched.setattr(library.HuggingFaceStorageWriter, "write_data", fail)
        with pytest.raises(OSError, match=r"again cannot be written: .*No space left"):
            save_checkpoint(tmp_path / "again", model)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    monkeypatch.setattr(library.HuggingFaceStorageReader, "read_data", fail)
    with pytest.raises(ValueError, match=r"saved is damaged: .*No space left"):
        load_checkpoint(tmp_path / "saved", model)


def test_ctrl_c_while_it_is_written_or_read_is_ctrl_c(tmp_path, monkeypatch):
    import torch.distributed.checkpoint as library

    def interrupted(*arguments):
        raise KeyboardInterrupt

    model = Linear(8, 8, rank=2)
    save_checkpoint(tmp_path / "saved", model)
    monkeypatch.setattr(library.HuggingFaceStorageWriter, "write_data", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "again", model)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    monkeypatch.setattr(library.HuggingFaceStorageReader, "read_data", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_checkpoint(tmp_path / "saved", model)
