from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from atlasvi.engine.cli.option_groups import spread


@dataclass(frozen=True)
class Paint:
    colour: Annotated[str, typer.Option(help="What it looks like.")] = "red"
    coats: Annotated[int, typer.Option(min=1)] = 1


@dataclass(frozen=True)
class Varnish(Paint):
    shine: bool = False


def run(words: str) -> str:
    app = typer.Typer()

    @app.command()
    @spread
    def paint(context: typer.Context, wall: str, doors: int = 0, *, asked: Varnish) -> None:
        """Paint a wall."""
        print(context.info_name, wall, doors, asked)

    return CliRunner().invoke(app, words.split()).output


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("north", "0 Varnish(colour='red', coats=1, shine=False)"),
        ("north --colour blue --doors 2 --shine", "2 Varnish(colour='blue', coats=1, shine=True)"),
    ],
)
def test_fields_of_a_dataclass_are_options_of_the_command_which_gets_the_dataclass(words: str, asked: str):
    assert run(words) == f"paint north {asked}\n"


def test_help_and_limits_of_the_fields_are_kept():
    shown = run("--help")
    assert "Paint a wall." in shown
    assert "What it looks like." in shown
    assert "asked" not in shown
    assert "equal to 1" in run("north --coats 0")
