"""Every Python block of README and the documentation is executed, page by page, as a reader would."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest
import torch
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser

import tenfold

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
SYBIL = Sybil(parsers=[PythonCodeBlockParser()])
MODULES = [
    "tenfold",
    *(
        found.name
        for found in pkgutil.walk_packages(tenfold.__path__, "tenfold.")
        if "__main__" not in found.name
    ),
]


@pytest.fixture(autouse=True)
def _own_folder_and_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```python" in page.read_text()], ids=lambda p: p.stem
)
def test_the_examples_of_a_page_run(page):
    examples = list(SYBIL.parse(page).examples())
    assert len(examples) >= page.read_text().count("```python"), "every block is found"
    for example in examples:
        example.evaluate()


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_the_docstrings_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
