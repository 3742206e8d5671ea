"""How Sphinx builds these pages."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import tenfold
from tenfold.testing import CHECKS

project = "tenfold"
author = "The tenfold developers"
copyright = author
version = release = tenfold.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "evidence/**"]
html_theme = "furo"
html_title = f"tenfold {release}"

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Optional dependencies, which building the pages does not need.
autodoc_mock_imports = ["lightning", "transformers", "torch.utils.tensorboard"]
autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "show-inheritance": True,
}
autodoc_typehints = "signature"
numpydoc_show_class_members = False

nitpicky = True
# Names of other projects: their inventories are on the network, which is not used.
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(torch|geoopt|collections|typing|typing_extensions|pathlib|fnmatch|numpy|abc|enum|os|pickle"
        r"|hypothesis|st|_?pytest|scipy|lightning|transformers)\b.*",
    ),
    # Aliases of types, and generics that autodoc takes for names.
    (
        "py:class",
        r"tenfold\..*\._\w+|Embedding|RankBound|Tree|Maps|list\[tuple\[int",
    ),
]


class CommandHelp(SphinxDirective):
    """``{command-help} train`` shows what ``tenfold train --help`` prints."""

    required_arguments = 0
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        command = [sys.executable, "-m", "tenfold", *self.arguments, "--help"]
        environment = {
            **os.environ,
            "COLUMNS": "88",
            "NO_COLOR": "1",
            "PYTHON_COLORS": "0",
        }
        text = subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True
        ).stdout
        return [nodes.literal_block(text, text, language="none")]


class Properties(SphinxDirective):
    """``{properties}`` lists the checks of :mod:`tenfold.testing`."""

    def run(self) -> list[nodes.Node]:
        text = "\n".join(f"{check.id}  {check.title}" for check in CHECKS.values())
        return [nodes.literal_block(text, text, language="none")]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("command-help", CommandHelp)
    app.add_directive("properties", Properties)
    return {"parallel_read_safe": True}
