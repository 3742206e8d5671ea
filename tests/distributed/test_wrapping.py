"""Every low-rank parameter of a wrapped module is averaged, over the right processes, while it is needed."""

import pytest
import torch

from tests.distributed.launch import launch
from tests.distributed.wrappings import WRAPPED, gradients, play, root

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    return launch(play, 2, tmp_path_factory.mktemp("processes") / "store")


@pytest.mark.parametrize("kind", WRAPPED)
def test_gradients_are_those_of_the_joint_batch_at_any_rank(played, kind):
    expected = gradients(kind)
    for result in played:
        assert not isinstance(result[kind], str), result[kind]
        torch.testing.assert_close(result[kind], expected)


@pytest.mark.parametrize("how", ["device_mesh", "keyword", "positional"])
def test_low_rank_parameters_are_averaged_over_the_same_processes_as_plain_ones(played, how):
    for result in played:
        assert result[how] == (1, True)


def test_wrong_groups_are_refused_before_anything_happens(played):
    for result in played:
        many, both, unknown, untouched = result["wrong groups"]
        assert many.startswith("RuntimeError: DistributedDataParallel needs a device_mesh of one dimension")
        assert both == (
            "RuntimeError: give DistributedDataParallel a process_group or a device_mesh, not both"
        )
        assert unknown.startswith("TypeError")
        assert untouched


@pytest.mark.parametrize("how", ["reducer", "ddp", "fsdp"])
def test_a_reducer_lives_as_long_as_its_parameters(played, how):
    for result in played:
        kept, sent, left = result[f"left by {how}"]
        assert kept == [True, True, True]
        assert sent
        assert left == [False, False, False]


def test_copies_have_no_reducer(played):
    for result in played:
        assert result["copied"] == ([True, True], True)


def joint_gradient():
    torch.manual_seed(0)
    net = root()
    (net(torch.eye(6, dtype=torch.float64)).square().sum() / 2).backward()
    return net.weight.grad


def test_a_copy_of_a_wrapper_averages_its_own_gradients(played):
    for result in played:
        found, untouched = result["copy of a wrapper"]
        torch.testing.assert_close(found, joint_gradient())
        assert untouched


def test_an_independent_part_stays_so_in_a_wrapped_network(played):
    (parts, said), (others, _) = (result["independent part"] for result in played)
    for one, other in zip(parts, others, strict=True):
        assert not torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    assert "all 1 have a reducer already or are independent" in said


def test_what_is_averaged_cannot_be_declared_independent(played):
    for result in played:
        said, undeclared = result["independent too late"]
        assert said.startswith("ValueError: the gradient of 1.weight is averaged")
        assert undeclared


def test_a_parameter_frozen_in_one_process_is_refused(played):
    for result in played:
        assert "process 1 has other low-rank parameters than process 0" in result["frozen in one process"]


def test_parameters_that_were_frozen_are_averaged_when_they_are_trained(played):
    for result in played:
        frozen, found = result["thawed"]
        assert frozen
        torch.testing.assert_close(found, joint_gradient())


def test_a_wrapper_that_failed_leaves_no_reducer(played):
    for result in played:
        said, again = result["failed"]
        assert said.startswith("ValueError: device_ids")
        assert again == "nothing happened"


def test_torchs_class_needs_a_plain_parameter(played):
    for result in played:
        assert "build a ManifoldReducer on it" in result["no plain parameter"]


def test_closing_again_leaves_the_next_reducer_alone(played):
    for result in played:
        assert result["closed twice"]
