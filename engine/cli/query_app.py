"""`atlasvi query`: the group of its commands, and what they are about.

A new question needs a function of a model and cells in `engine/queries/`, and a command in `query_commands` (questions
about single cells), `comparison_commands` (groups of cells), `gene_commands` (genes) or `plot_commands` (pictures).
`question_command` makes it one, and the service then answers it too. Options that several commands share are
dataclasses (`cell_options`; `option_groups` says how).
"""

import itertools
import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from atlasvi.engine.cli.arguments import print_lines, split_names
from atlasvi.engine.cli.query_group import QueryGroup

if TYPE_CHECKING:  # imports torch, which `--help` does not need
    from atlasvi.engine.queries.opened_question import OpenedQuestion

query_app = typer.Typer(cls=QueryGroup, no_args_is_help=True, invoke_without_command=True)


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
        Path | None,
        typer.Option(
            help="Model of minified data of scvi-tools, if it is in another folder; for new cells beside a minified "
            "store, a run that was mapped from its model."
        ),
    ] = None,
    device: Annotated[Literal["cpu", "cuda", "auto"], typer.Option(help="Where to compute.")] = "cpu",
    gene_column: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Name genes by this column of var, in questions and answers."),
    ] = None,
) -> None:
    """Ask a model about cells: minified cells, which need no counts, or the cells of DATA."""

    def open_it() -> "OpenedQuestion":
        from atlasvi.engine.queries.opened_question import OpenedQuestion  # imports torch, which `--help` does not need

        opened = OpenedQuestion(place, data, model, device, gene_column)
        context.call_on_close(opened.close)
        return opened

    context.obj = open_it
    context.meta["places"], context.meta["model"] = (place, data), model
    if context.invoked_subcommand is None:
        print_lines(describe_places(context))
        print_lines(_list_questions(context, [place, *([data] if data else [])]))


def describe_places(context: typer.Context) -> Iterator[str]:
    """Lines on what the minified data of `query` holds; with DATA, what both are."""
    from atlasvi.engine.cli.describe import describe, describe_minified_store
    from atlasvi.engine.minified.minified_store import is_minified_store

    (place, data), model = context.meta["places"], context.meta["model"]
    if data is None and (model is not None or not is_minified_store(place)):
        return describe_minified_store(context.obj().kept)  # raises the errors of a question, which has no DATA
    return itertools.chain.from_iterable(describe(each) for each in (place, data) if each is not None)


def _list_questions(context: typer.Context, places: list[str]) -> Iterator[str]:
    """Lines on what may be asked, and how."""
    yield ""
    yield "It can be asked:"
    group: Any = context.command
    names = group.list_commands(context)
    for name in names:
        yield f"  {name:<{max(map(len, names))}}  {group.get_command(context, name).get_short_help_str(90)}"
    yield ""
    start = shlex.join(["atlasvi", "query", *places])
    yield f"For example: {start} latent --limit 5"
    yield f"The options of a question: {start} QUESTION --help"


def split_known(text: str | list[str], list_known: Callable[[], Iterable[Any]]) -> list[str]:
    """Names separated by commas; or the whole text if it is a known name, because names may contain commas."""
    if isinstance(text, str) and "," in text and text in map(str, list_known()):
        return [text]
    return split_names(text) or []


def split_batches(opened: "OpenedQuestion", text: str | list[str] | None) -> list[str] | None:
    """The batches that --transform-batch names; a name of the model may contain commas."""
    return None if text is None else split_known(text, lambda: opened.run.setup.batch_categories)
