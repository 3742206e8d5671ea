"""The kit is tested by manifolds that are wrong: each must be rejected, by the right check."""

import pytest

from tenfold.testing import CHECKS, check_manifold

from . import mutants_of_calls, mutants_of_maps, mutants_of_spaces  # noqa: F401  enter the mutants
from .mutants import MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_the_right_check_rejects_the_mutant(mutant):
    assert check_manifold(mutant.right, checks=[mutant.id]).ok
    assert check_manifold(mutant.wrong, checks=[mutant.id]).failed == (mutant.id,)


def test_every_check_can_fail():
    assert {mutant.id for mutant in MUTANTS} == set(CHECKS)
