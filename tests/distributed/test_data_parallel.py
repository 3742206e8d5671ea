"""Training in several processes equals training in one with the joint batch."""

import pytest
import torch

from tests.distributed.fused import train_fused
from tests.distributed.launch import launch
from tests.distributed.trainings import EXACT, train, train_all

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")


@pytest.fixture(scope="module", params=[2, 4])
def together(request, tmp_path_factory):
    store = tmp_path_factory.mktemp("processes") / "store"
    return launch(train_all, request.param, store, tuple(EXACT))


@pytest.fixture(scope="module")
def alone():
    return {kind: train(kind) for kind in EXACT}


def assert_same_training(found, expected):
    torch.testing.assert_close(found["losses"], expected["losses"], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found["dense"], expected["dense"], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", EXACT)
def test_equals_the_joint_batch_through_ten_rank_changes(together, alone, kind):
    for result in together:
        assert_same_training(result[kind], alone[kind])
        assert result[kind]["changes"] >= 10
    assert alone[kind]["losses"][-1] != alone[kind]["losses"][0]


@pytest.mark.parametrize("kind", EXACT)
def test_processes_end_bitwise_equal(together, kind):
    first, *others = (result[kind]["packed"] for result in together)
    for other in others:
        assert all(torch.equal(other[name], first[name]) for name in first)


def test_normalisations_inside_of_convolutions_train_alike(tmp_path):
    plain, fused = (launch(train_fused, 2, tmp_path / str(how), how) for how in (False, True))
    for expected, found in zip(plain, fused, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
