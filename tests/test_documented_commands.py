"""Every command line that the documents show is one that the command line takes: its command, arguments and options.

Python that they show is Python, and what it imports of atlasvi is there. The pages of tests/test_pages.py are run.
"""

import ast
import importlib
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from atlasvi.engine.cli.commands import app
from atlasvi.engine.cli.query_group import BUCKET_OPTIONS, move_options

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SHOWS_A_FORM = re.compile(r"\[[A-Z-]|\.\.\.|\||\bCOMMAND\b|--install-completion|--help|--version")
GROUP: Any = get_command(app)


def list_commands(page: Path) -> list[str]:
    """The commands in the blocks of a page, without what is said beside them."""
    text = page.read_text()
    lines = [line.removeprefix("$") for line in text.splitlines() if line.startswith(("    atlasvi ", "$ atlasvi "))]
    found = [re.split(r"\s#\s|\s{2,}(?=\S)", line.strip())[0] for line in lines if "QUESTION" not in line]
    return [line for line in found if not SHOWS_A_FORM.search(line)]


def list_mentions(page: Path) -> list[str]:
    """The commands between backticks, which may leave out what a command needs."""
    found = re.findall(r"(?<!`)`(atlasvi [a-z-]+ [^`]*?)`", page.read_text())
    return [line for line in found if not SHOWS_A_FORM.search(line) and not re.search(r" [A-Z]\b|QUESTION", line)]


def parse(words: list[str]) -> None:
    """Parse as the command line does, down to the last command. Raises an error of usage."""
    _, words = move_options(words, BUCKET_OPTIONS)  # which the group takes, wherever they stand
    group, context = GROUP, GROUP.make_context("atlasvi", [])
    while words:
        command = group.get_command(context, words[0])
        assert command is not None, words[0]
        context = command.make_context(words[0], words[1:], parent=context)
        group, words = command, [*context._protected_args, *context.args]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_are_those_of_the_command_line(page: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.toml").write_text("")
    wrong = []
    for line in list_commands(page):
        words = shlex.split(line)[1:]
        if "--config" in words:  # what the file must hold is tested with job files
            continue
        if words[0] == "launch":
            assert "--" in words, line
            words = words[words.index("--") + 1 :]
        try:
            parse(words)
        except Exception as error:
            wrong.append(f"{line}: {getattr(error, 'message', '') or type(error).__name__}")
    assert wrong == []


def test_commands_between_backticks_are_those_of_the_command_line(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong = []
    for page in PAGES:
        for line in list_mentions(page):
            words = shlex.split(line)[1:]
            try:
                parse(words[words.index("--") + 1 :] if words[0] == "launch" and "--" in words else words)
            except Exception as error:
                if type(error).__name__ not in ("MissingParameter", "NoArgsIsHelpError", "JobError"):
                    wrong.append(f"{page.name}: {line}: {getattr(error, 'message', '') or type(error).__name__}")
    assert wrong == []


def test_commands_are_found_in_the_pages():
    assert sum(len(list_commands(page)) for page in PAGES) > 60
    assert sum(len(list_mentions(page)) for page in PAGES) > 30


def test_python_of_the_pages_imports_what_there_is():
    n_imports = 0
    for page in PAGES:
        for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
            for node in ast.walk(ast.parse(code)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("atlasvi."):
                    module = importlib.import_module(str(node.module))
                    assert [name.name for name in node.names if not hasattr(module, name.name)] == [], page.name
                    n_imports += 1
    assert n_imports > 5


def test_readme_lists_each_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`([a-z]+)`", row.split("|")[1])}
    assert set(extras) - {"all", "dev"} <= listed
