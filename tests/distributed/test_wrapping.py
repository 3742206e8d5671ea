"""Every low-rank parameter of a wrapped module is averaged, over the right processes, while it is needed."""

import pytest
import torch

from tests.distributed.launch import launch
from tests.distributed.wrappings import WRAPPED, gradients, play

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


def test_closing_again_leaves_the_next_reducer_alone(played):
    for result in played:
        assert result["closed twice"]
