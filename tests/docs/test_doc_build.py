"""The documentation builds without a warning and mentions every public name."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from sphinx.util.inventory import InventoryFile

ROOT = Path(__file__).parents[2]
ROOMS = ["linalg", "manifolds", "optim", "nn", "testing"]


@pytest.mark.quality
def test_the_documentation_builds_and_mentions_every_public_name(tmp_path):
    # The plain theme, since the other one draws the whole tree of pages again for the source of every module.
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    command += ["-D", "html_theme=basic"]
    built = subprocess.run(
        [*command, "-d", tmp_path / "doctrees", ROOT / "docs", tmp_path / "html"],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    inventory = InventoryFile.loads((tmp_path / "html" / "objects.inv").read_bytes(), uri="")
    mentioned = {name for kind in inventory.data if kind.startswith("py:") for name in inventory.data[kind]}
    public = {
        f"tenfold.{room}.{name}"
        for room in ROOMS
        for name, thing in vars(importlib.import_module(f"tenfold.{room}")).items()
        if name in importlib.import_module(f"tenfold.{room}").__all__
        and not getattr(inspect.getmodule(thing), "__name__", "").startswith("geoopt")
    }
    assert public <= mentioned, f"not in the documentation: {sorted(public - mentioned)}"


def test_the_guide_lists_every_abstract_member():
    import re

    from tenfold.manifolds import LowRankManifold

    page = (ROOT / "docs" / "own-manifold.md").read_text()
    listed = re.findall(r"^\| `(\w+)(?:\(.*?\))?` \|", page, flags=re.MULTILINE)
    assert sorted(listed) == sorted(LowRankManifold.__abstractmethods__)
