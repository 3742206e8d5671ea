"""Damaged and forged files of every kind: rejected by name within bounded memory, with nothing changed.

The default run tries 200 files of each kind, ``pytest -m deep tests/hostile`` 2,000, others in every run.
"""

import tempfile
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.hostile.limits import headroom, ran_out
from tests.hostile.loaders import ALLOWED, loaders

KINDS = sorted(loaders())


def attempt(kind, raw):
    """Read a file; returns whether it was accepted."""
    loader = loaders()[kind]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / loader.name
        path.write_bytes(raw)
        try:
            with headroom(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of overflow and the like, in absurd but finite numbers
                loader(path)
        except ALLOWED as caught:
            error = caught
        else:
            return True
        assert not ran_out(error), f"memory was asked for: {error!r}"
        assert loader.name in str(error), f"the message does not name the file: {error}"
        assert path.read_bytes() == raw
        return False


def fuzz(kind, number, reproducible):
    tried, accepted = set(), 0

    @settings(
        max_examples=number + number // 2,
        derandomize=reproducible,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(loaders()[kind].inputs)
    def property(raw):
        nonlocal accepted
        if len(tried) < number and raw not in tried:
            tried.add(raw)
            accepted += attempt(kind, raw)

    property()
    print(f"{kind}: {len(tried)} files, {accepted} accepted")
    return len(tried)


@pytest.mark.parametrize("kind", KINDS)
def test_the_valid_file_is_read(kind):
    assert attempt(kind, loaders()[kind].valid)


@pytest.mark.parametrize("kind", KINDS)
def test_foreign_files_are_refused_and_change_nothing(kind):
    assert fuzz(kind, 200, reproducible=True) >= 200


@pytest.mark.deep
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_foreign_files(kind):
    assert fuzz(kind, 2_000, reproducible=False) >= 2_000
