"""What the reducer promises beside equal trainings."""

import pytest
import torch

from tenfold.distributed import ManifoldReducer
from tenfold.distributed.collectives import reachable
from tenfold.distributed.fingerprint import fingerprint
from tenfold.optim import RiemannianSGD, clip_riemannian_norm_
from tests.distributed.launch import DIED, launch
from tests.distributed.scenes import one_dies, play, skipping
from tests.distributed.test_data_parallel import assert_same_training
from tests.distributed.trainings import TIDES, batch, dense, network, train

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    return launch(play, 2, tmp_path_factory.mktemp("processes") / "store")


def gradient():
    net = network()
    x, y = batch(0)
    (net(x) - y).square().mean().backward()
    return net


@pytest.mark.parametrize("scene", ["accumulated", "accumulated without sync"])
def test_accumulated_gradients(played, scene):
    alone = train("sgd", accumulate=2)
    for result in played:
        assert_same_training(result[scene], alone)


def test_no_sync_saves_the_communication(played):
    first, second = (played[0][scene]["bytes"] for scene in ("accumulated", "accumulated without sync"))
    assert first == 2 * second > 0


def test_ranks_under_plain_ddp_are_refused_and_nothing_changes(played):
    for result in played:
        said, unchanged = result["plain ddp"]
        assert said.startswith("ValueError: parameter '0.weight'")
        assert "tenfold.distributed.DistributedDataParallel" in said
        assert unchanged


def test_independent_processes(played):
    one, other = (result["independent"] for result in played)
    assert not torch.allclose(one["3.weight"], other["3.weight"])


def test_beside_torchs_ddp(played):
    net = network()
    optimizer = RiemannianSGD(net.parameters(), lr=0.1, rank_adaptation=TIDES)
    for number in range(3):
        x, y = batch(number)
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        optimizer.step()
    for result in played:
        torch.testing.assert_close(result["torch's ddp"], dense(net), rtol=1e-9, atol=1e-11)


def test_a_difference_names_the_process_and_the_parameter(played):
    for result in played:
        said, *_ = result["difference"]
        assert said.startswith(
            "RuntimeError: process 1 differs from process 0 in the value or optimizer state of 3.w"
        )


def test_a_difference_can_be_overwritten(played):
    (said, one, state, later), (_, other, other_state, _) = (r["difference broadcast"] for r in played)
    assert said == later == "nothing happened"
    assert torch.equal(state, other_state)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_different_ranks_are_an_error(played):
    for result in played:
        assert "process 1 differs from process 0 in the rank of 3.weight" in result["rank difference"]


@pytest.mark.parametrize(
    ("scene", "words"),
    [
        ("state difference", "process 1 differs from process 0 in the value or optimizer state of 3.weight"),
        ("other structure", "process 1 has other low-rank parameters than process 0"),
        ("nothing to reduce", "Linear has no low-rank parameter to reduce"),
        ("reduced twice", "all 2 have a reducer already"),
        ("wrong option", "on_difference must be 'raise' or 'broadcast', got 'ignore'"),
        ("join", "drop_last=True"),
    ],
)
def test_mistakes(played, scene, words):
    for result in played:
        assert words in result[scene]


def test_everybody_starts_with_the_ranks_of_process_0(played):
    (ranks, one), (other_ranks, other) = (result["other ranks at the start"] for result in played)
    assert ranks == other_ranks == [(2,)]
    assert torch.equal(one["0.weight"], other["0.weight"])


def test_a_parameter_that_one_process_does_not_use(played):
    for result in played:
        assert result["used in one process only"] == (True, True, True)


def test_a_layer_that_one_process_skips_takes_its_augmented_step_in_all(played):
    _, expected = skipping([0, 1])
    for result in played:
        said, found = result["skipping a layer"]
        assert said == "nothing happened"
        torch.testing.assert_close(found, expected)


def test_what_no_process_has_captured_is_an_error_in_all(played):
    for result in played:
        said, _ = result["captured nowhere"]
        assert said.startswith("ValueError: nothing was captured for parameter 0 of group 0")


def test_new_directions_are_the_same_in_all_processes(played):
    (said, before, one), (_, _, other) = (result["grown"] for result in played)
    assert said == "nothing happened"
    assert torch.equal(one, other)
    assert not torch.allclose(one, before)


def test_clipping_sees_the_joint_gradient(played):
    expected = clip_riemannian_norm_(gradient().parameters(), 1e-3)
    for result in played:
        torch.testing.assert_close(result["clipped"], expected)


def test_a_backward_pass_that_fails_leaves_no_trace(played):
    expected = gradient()[3].weight.grad
    for result in played:
        said, grad = result["stopped backward"]
        assert "on purpose" in said
        torch.testing.assert_close(grad, expected)


def test_close(played):
    (had, gone, one), (_, _, other) = (result["closed"] for result in played)
    assert had
    assert gone
    assert not torch.allclose(one, other)


def test_traffic_is_the_factored_parameters_and_one_percent(played):
    rows, ranks = played[0]["traffic"]
    assert ranks != [(8, 8), (8, 8)]
    for sent, size in rows:
        assert size <= sent <= 1.01 * size


def test_a_process_that_dies_does_not_hang_the_others(tmp_path):
    (said, seconds), other = launch(one_dies, 2, tmp_path / "store", limit=60)
    assert other == DIED
    assert said.startswith("RuntimeError")
    assert seconds < 30


@pytest.mark.parametrize(
    ("backends", "device"),
    [("cuda:nccl", "cuda:1"), ("cpu:gloo,cuda:nccl", "cpu"), ("cpu:gloo,cuda:gloo", "cpu")],
)
def test_what_nccl_does_not_reach_is_sent_from_the_gpu(monkeypatch, backends, device):
    monkeypatch.setattr(torch.distributed, "get_backend_config", lambda group: backends)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert reachable(torch.device("cpu"), None) == torch.device(device)
    assert reachable(torch.device("cuda:0"), None) == torch.device("cuda:0")


def test_without_processes():
    with pytest.raises(ValueError, match="init_process_group"):
        ManifoldReducer(network())


def test_fingerprints_see_bits_order_and_ranks():
    x = torch.randn(50, dtype=torch.float64)
    flipped = x.clone()
    flipped.view(torch.int64)[17] ^= 1
    swapped = x.clone()
    swapped[[3, 4]] = x[[4, 3]]
    marks = [fingerprint((2, 3), [x]), fingerprint((3, 2), [x])]
    marks += [fingerprint((2, 3), [y]) for y in (flipped, swapped, x[:-1], x.float(), torch.zeros(50))]
    assert len({int(mark) for mark in marks}) == len(marks)
    assert torch.equal(fingerprint((2, 3), [x.clone()]), marks[0])
    parts = fingerprint((2, 3), [x[:20], x[20:]])
    assert not torch.equal(parts, fingerprint((2, 3), [x[20:], x[:20]]))
