"""FSDP2 leaves low-rank parameters whole and trains as one process would."""

import pytest
import torch

from tenfold.optim import clip_riemannian_norm_
from tests.distributed.launch import launch
from tests.distributed.shards import OPTIMIZERS, SWITCHES, play, train
from tests.distributed.trainings import batch, dense, network

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    return launch(play, 2, tmp_path_factory.mktemp("processes") / "store")


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_equals_the_joint_batch(played, kind):
    alone = train("alone", kind)
    for result in played:
        found = result[f"fsdp {kind}"]
        torch.testing.assert_close(found["losses"], alone["losses"], rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(found["dense"], alone["dense"], rtol=1e-7, atol=1e-9)
        assert found["ranks"] == alone["ranks"]
        assert len(alone["ranks"]) == 2


def test_low_rank_parameters_stay_whole(played):
    for result in played:
        assert dict(result["cut"]) == {
            "0.weight": False,
            "0.bias": True,
            "3.weight": False,
            "3.bias": True,
            "5.weight": True,
            "5.bias": True,
        }


def test_a_parameter_cut_into_pieces_is_refused(played):
    for result in played:
        assert "tenfold.distributed.fully_shard" in result["torch's fully_shard"]


def test_accumulated_gradients(played):
    net = network()
    optimizer = OPTIMIZERS["sgd"](net)
    x, y = batch(0)
    (net(x) - y).square().mean().backward()
    optimizer.step()
    for result in played:
        for scene in ("accumulated", "accumulated without sync"):
            torch.testing.assert_close(result[scene], dense(net), rtol=1e-8, atol=1e-10)


def test_switching_off_reaches_the_reducers_that_torch_would_reach(played):
    for result in played:
        states, silent, heard = result["switched"]
        assert states == list(SWITCHES.values())
        assert silent == [0, 0]
        assert heard == [True, True]


def test_a_reducer_of_more_than_the_block_goes_on(played):
    for result in played:
        assert result["switched beside a reducer"] == [True, False]


def test_clipping(played):
    net = network()
    x, y = batch(0)
    (net(x) - y).square().mean().backward()
    expected = clip_riemannian_norm_(net.parameters(), 1e-3)
    for result in played:
        before, after = result["clipped"]
        torch.testing.assert_close(before, expected)
        torch.testing.assert_close(after, torch.tensor(1e-3, dtype=torch.float64), rtol=1e-2, atol=0)


def test_a_parameter_that_one_process_does_not_use(played):
    for result in played:
        found, expected = result["used in one process only"]
        torch.testing.assert_close(found, expected)


def test_a_point_of_another_manifold_is_not_cut_into_pieces(played):
    for result in played:
        said, untouched, kept = result["other manifold"]
        assert said.startswith("ValueError: point lies on Sphere")
        assert untouched
        assert kept


def test_half_precision_under_autocast(played):
    for result in played:
        assert result["autocast"] == {torch.float32}


def test_a_checkpoint_that_process_0_cannot_begin_is_an_error_in_all(played):
    for result in played:
        assert result["nowhere"].startswith("OSError: /no/such/folder/step cannot be written")


def test_nan_in_one_shard_stops_all_processes(played):
    for result in played:
        said, unchanged = result["nan"]
        assert "the gradient of parameter 4" in said
        assert unchanged
