"""Which of the words after `atlasvi query` are MINI or RUN, DATA, the question and the options of the group."""

from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from atlasvi.engine.cli.query_group import QueryGroup

app = typer.Typer(cls=QueryGroup, invoke_without_command=True)


@app.callback()
def take(
    place: str, data: str | None = None, model: str | None = None, device: Annotated[str, typer.Option()] = "cpu"
) -> None:
    typer.echo(f"{place} {data} {model} {device}", nl=False)


@app.command()
def latent(limit: int = 0, where: str = "") -> None:
    typer.echo(f" latent {limit} {where}")


@app.command()
def info() -> None:
    typer.echo(" info")


@pytest.mark.parametrize(
    ("words", "understood"),
    [
        ("x.mini latent", "x.mini None None cpu latent 0 "),
        ("run x.h5ad latent --limit 3", "run x.h5ad None cpu latent 3 "),
        ("run x.h5ad info", "run x.h5ad None cpu info"),
        ("--model m x.mini latent", "x.mini None m cpu latent 0 "),
        ("x.mini --model=m latent --limit 2", "x.mini None m cpu latent 2 "),
        ("run x.h5ad latent --device cuda --model m", "run x.h5ad m cuda latent 0 "),
        ("run ./latent latent", "run ./latent None cpu latent 0 "),
        ("run x.h5ad latent --where info", "run x.h5ad None cpu latent 0 info"),
        (f"run {__file__} ", f"run {__file__} None cpu"),
        ("run s3://atlases/a.store", "run s3://atlases/a.store None cpu"),
        ("x.mini", "x.mini None None cpu"),
    ],
)
def test_words_are_understood_in_any_order_of_the_options(words: str, understood: str):
    done = CliRunner().invoke(app, words.split())
    assert done.output.rstrip("\n") == understood


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("x.mini neighbours", "No such command 'neighbours'"),
        ("x.mini neighbours --limit 3", "No such command 'neighbours'"),
        ("run x.h5ad neighbours", "No such command 'neighbours'"),
        ("x.mini latent --model", "--model"),
    ],
)
def test_what_is_no_question_is_named(words: str, message: str):
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 2
    assert message in done.output
