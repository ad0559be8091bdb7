"""`atlasvi serve`: the questions of `atlasvi query` over HTTP."""

import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

# the questions, which are there once these are imported
import atlasvi.engine.cli.comparison_commands
import atlasvi.engine.cli.gene_commands
import atlasvi.engine.cli.neighbour_commands  # noqa: F401
from atlasvi.engine.cli.arguments import check_finite, refuse_unused
from atlasvi.engine.cli.job_file import JobFile
from atlasvi.engine.cli.option_groups import spread
from atlasvi.engine.cli.question_command import QUESTIONS
from atlasvi.engine.queries.question import Question
from atlasvi.engine.service.limits import Limits
from atlasvi.engine.terminal import count, say, show_progress
from atlasvi.loaders.errors import MissingDependencyError

if TYPE_CHECKING:  # imports pandas, which `--help` does not need
    from atlasvi.engine.minified.kept_posterior import KeptPosterior

NOT_SERVED = {
    "info": "GET /api/info tells what the store is",
    "genes": "GET /api/genes lists them",
    "elbo": "it needs counts, and a minified store has none",
    "plot": "the page draws",
}
"""The questions of `atlasvi query` that the service does not answer, and why."""


def list_served() -> dict[str, Question]:
    """The questions that the service answers, by name."""
    return {name: question for name, question in QUESTIONS.items() if name not in NOT_SERVED}


@spread
def serve(
    context: typer.Context,
    mini: Annotated[str, typer.Argument(metavar="MINI", help="A minified store, or minified data of scvi-tools.")],
    port: Annotated[int, typer.Option(help="The port; 0: any free one.", min=0, max=65535)] = 8765,
    host: Annotated[
        str, typer.Option(help="The address to listen at; any but this machine's own needs a token.")
    ] = "127.0.0.1",
    token: Annotated[
        str | None,
        typer.Option(envvar="ATLASVI_TOKEN", help="What each request must bring (Authorization: Bearer TOKEN)."),
    ] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Serve the page, too.")] = True,
    static: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT",
            help="Serve nothing: write the page to a folder for any web server, without what is computed.",
        ),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Model of minified data of scvi-tools, if it is in another folder.")
    ] = None,
    config: JobFile = None,
    *,
    limits: Limits,
) -> None:
    """Answer questions to minified cells over HTTP, until Ctrl-C."""
    from atlasvi.engine.minified.minified_by_scvi_tools import open_minified

    check_finite(limits.seconds)
    mini = mini if "://" in mini else os.path.abspath(mini)  # "." has a name then
    if static is not None:
        served = ["port", "host", "token", "page", *(limit.name for limit in fields(Limits))]
        refuse_unused(context, served, "--static serves nothing")
        write_static(open_minified(mini, model), static)
        return
    try:
        from atlasvi.engine.service.access import check_access
        from atlasvi.engine.service.app import make_app
        from atlasvi.engine.service.server import open_socket, run_server
        from atlasvi.engine.service.tiles import open_tiles
    except ImportError as error:
        raise MissingDependencyError(f"serve needs {error.name}: pip install 'atlasvi[serve]'.") from None
    check_access(host, token)
    store = open_minified(mini, model)
    with show_progress() as progress:
        tiles = open_tiles(store, progress) if store.has_embedding and page else None
    name = f"[{host}]" if ":" in host else host
    app = make_app(store, list_served(), limits, token, page, hosts=(name.lower(),), tiles=tiles)
    listening = open_socket(host, port)
    say(f"{mini}: {count(store.n_cells, 'cell')}, at http://{name}:{listening.getsockname()[1]}/ until Ctrl-C.")
    run_server(app, listening, limits)


def write_static(store: "KeptPosterior", out: Path) -> None:
    """Write the page of a store to a folder. Raises SourceError if its cells have no coordinates."""
    from atlasvi.engine.service.static_page import write_static_page
    from atlasvi.engine.service.tiles import open_tiles
    from atlasvi.loaders.outputs import check_output_free

    check_output_free(out)
    store.read_embedding(slice(0, 0))
    with show_progress() as progress:
        left_out = write_static_page(store, open_tiles(store, progress), out, progress=progress)
    for sentence in left_out:
        say(f"Left out: {sentence}")
    say(f"{out} holds the page: any web server can host it (to try: python -m http.server --directory {out}).")
