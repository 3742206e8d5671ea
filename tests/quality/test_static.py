"""Lint, format and types."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.quality
@pytest.mark.parametrize(
    "tool", [("ruff", "check"), ("ruff", "format", "--check"), ("mypy",)], ids=lambda tool: "-".join(tool)
)
def test_it_is_clean(tool):
    command, *arguments = tool
    found = subprocess.run(
        [sys.executable, "-m", command, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr
