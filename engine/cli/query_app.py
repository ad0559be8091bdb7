"""`atlasvi query`: the group of its commands, and what they are about.

A new question needs a function of a model and cells in `engine/queries/`, and a command in `query_commands` (questions
about single cells), `comparison_commands` (groups of cells) or `gene_commands` (genes). `question_command` makes it
one, and the service then answers it too. Options that several commands share are dataclasses (`cell_options`;
`option_groups` says how).
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from atlasvi.engine.cli.arguments import split_names
from atlasvi.engine.cli.query_group import QueryGroup

if TYPE_CHECKING:  # imports torch, which `--help` does not need
    from atlasvi.engine.queries.opened_question import OpenedQuestion

query_app = typer.Typer(cls=QueryGroup, no_args_is_help=True)


@query_app.callback()
def open_question(
    context: typer.Context,
    place: Annotated[
        str,
        typer.Argument(
            metavar="MINI|RUN [DATA]",
            help="A minified store, or minified data of scvi-tools; or a run or model and, as DATA, its cells: a "
            "cell store, any source (PATH::layer=NAME), or minified data.",
        ),
    ],
    data: Annotated[str | None, typer.Option(help="Same as DATA.", hidden=True)] = None,
    model: Annotated[
        Path | None, typer.Option(help="Model of minified data of scvi-tools, if it is in another folder.")
    ] = None,
    device: Annotated[Literal["cpu", "cuda", "auto"], typer.Option(help="Where to compute.")] = "cpu",
) -> None:
    """Ask a model about cells: minified cells, which need no counts, or the cells of DATA."""

    def open_it() -> "OpenedQuestion":
        from atlasvi.engine.queries.opened_question import OpenedQuestion  # imports torch, which `--help` does not need

        opened = OpenedQuestion(place, data, model, device)
        context.call_on_close(opened.close)
        return opened

    context.obj = open_it
    context.meta["places"] = place, data


def split_known(text: str | list[str], list_known: Callable[[], Iterable[Any]]) -> list[str]:
    """Names separated by commas; or the whole text if it is a known name, because names may contain commas."""
    if isinstance(text, str) and "," in text and text in map(str, list_known()):
        return [text]
    return split_names(text) or []


def split_batches(opened: "OpenedQuestion", text: str | list[str] | None) -> list[str] | None:
    """The batches that --transform-batch names; a name of the model may contain commas."""
    return None if text is None else split_known(text, lambda: opened.run.setup.batch_categories)
