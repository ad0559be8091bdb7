import shlex

import pytest
from typer.main import get_command

from atlasvi.engine.cli.commands import app
from atlasvi.engine.cli.overview import WAY
from tests.engine.cli.test_commands import atlasvi


def test_atlasvi_alone_shows_the_way_in_order_with_an_example_line_a_step():
    lines = atlasvi().stdout.splitlines()
    examples = [line.split()[1] for line in lines if line.startswith("       atlasvi ")]
    assert examples == [
        "info",
        "ingest",
        "train",
        "train",
        "plot",
        "minify",
        "query",
        "query",
        "embed",
        "serve",
        "card",
    ]
    assert max(map(len, lines)) <= 105


@pytest.mark.parametrize("example", [example for _, example in WAY])
def test_each_example_is_a_command_with_options_that_there_are(example: str, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    group = get_command(app)
    words = shlex.split(example)[1:]
    context = group.make_context("atlasvi", [])
    while True:
        command = group.get_command(context, words[0])
        context = command.make_context(words[0], words[1:], parent=context)
        words = [*context._protected_args, *context.args]
        if not words:
            break
        group = command
    assert context.info_name in example
