"""Every command line that the documents show is one that the command line takes: its command, arguments and options."""

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
    """The commands in the indented and the marked blocks of a page, without what is said beside them."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("    atlasvi ")]
    found = [re.split(r"\s#\s|\s{2,}(?=\S)", line.strip())[0] for line in lines if "QUESTION" not in line]
    return [line for line in found if not SHOWS_A_FORM.search(line)]


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


def test_commands_are_found_in_the_pages():
    assert sum(len(list_commands(page)) for page in PAGES) > 40


def test_readme_lists_each_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`([a-z]+)`", row.split("|")[1])}
    assert set(extras) - {"all", "dev"} <= listed
