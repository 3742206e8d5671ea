"""README's commands: what CI runs is what README says, and every command line in the documentation is one."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def _commands(page):
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line]


def test_ci_runs_the_second_command_of_readme():
    _, tests = _commands(ROOT / "README.md")
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == tests


def test_getting_started_has_the_commands_of_readme():
    assert _commands(ROOT / "docs" / "getting-started.md") == _commands(ROOT / "README.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_tenfold_command_is_understood(page):
    from tenfold.cli.arguments import parse

    for command in _commands(page):
        for part in command.split("&&"):
            program, *arguments = shlex.split(part)
            if program == "tenfold":
                parse(arguments)


def test_the_page_of_the_command_line_shows_every_command(capsys):
    from tenfold.cli.arguments import parse

    with pytest.raises(SystemExit):
        parse(["--help"])
    commands = re.findall(r"^    (\w+)  ", capsys.readouterr().out, flags=re.MULTILINE)
    page = (ROOT / "docs" / "command-line.md").read_text()
    shown = re.findall(r"^```\{command-help\} (\w+)", page, flags=re.MULTILINE)
    assert shown == commands
