"""`atlasvi index`, `atlasvi query MINI neighbours` and `atlasvi query MINI annotate`."""

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer

from atlasvi.engine.cli.arguments import Limit, Out, Seed, refuse_unused, split_names
from atlasvi.engine.cli.query_commands import query_app
from atlasvi.engine.terminal import count, say, show_progress

if TYPE_CHECKING:  # imports torch, which `--help` does not need
    from atlasvi.engine.queries.new_cells import NewCells
    from atlasvi.engine.queries.question_cells import MinifiedCells

NewCounts = Annotated[
    str | None,
    typer.Option(
        "--cells", metavar="NEW", help="New counts (any source, PATH::layer=NAME), which the model encodes; DATA too."
    ),
]
Among = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="COLUMN=VALUE|EXPRESSION", help="Only cells of MINI for which this holds."),
]
MissingGenes = Annotated[
    Literal["refuse", "zeros"], typer.Option(help="Genes of the model that NEW lacks: an error, or counts of zero.")
]
Recall = Annotated[
    float,
    typer.Option(metavar="SHARE", help="Share of the true neighbours that an index should find.", min=0.01, max=1),
]
Exact = Annotated[bool, typer.Option("--exact", help="Compare with every cell, even if there is an index.")]
IndexPlace = Annotated[Path | None, typer.Option(help="The index, if it is not MINI.neighbours.")]


def index(
    mini: Annotated[Path, typer.Argument(metavar="MINI", help="A minified store, or minified data of scvi-tools.")],
    out: Annotated[Path | None, typer.Option(help="The folder to make; default: MINI.neighbours, beside MINI.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same index.", min=0)] = 0,
) -> None:
    """Build the index with which `query MINI neighbours` finds neighbours without reading all cells."""
    from atlasvi.engine.minified.minified_by_scvi_tools import open_minified
    from atlasvi.engine.neighbours.build_index import build_index

    with show_progress() as progress:
        report = build_index(open_minified(mini), out, seed=seed, progress=progress)
    size, found = report.n_bytes, f"{report.best_recall:.1%}"
    say(
        f"{report.out}: {count(report.n_cells, 'cell')} in {count(report.n_lists, 'list')}, {size / 1e6:,.1f} MB, "
        f"{size / report.n_cells:.1f} bytes per cell; it can find {found} of the 50 nearest cells."
    )


@query_app.command("neighbours")
def query_neighbours(
    context: typer.Context,
    of: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES|COLUMN=VALUE|EXPRESSION",
            help="Cells of MINI to find the neighbours of: NAME,NAME, @FILE with one per line, or a filter.",
        ),
    ] = None,
    cells: NewCounts = None,
    limit: Limit = None,
    k: Annotated[int, typer.Option("-k", "--k", metavar="N", help="Neighbours of each cell.", min=1)] = 15,
    where: Among = None,
    by: Annotated[
        Literal["mean", "posterior"],
        typer.Option(help="mean: distance of posterior means; posterior: 2-Wasserstein distance of posteriors."),
    ] = "mean",
    columns: Annotated[
        str | None, typer.Option(metavar="COLUMNS", help="obs columns of the neighbours to add.")
    ] = None,
    recall: Recall = 0.97,
    exact: Exact = False,
    index: IndexPlace = None,
    missing_genes: MissingGenes = "refuse",
    out: Out = None,
) -> None:
    """The nearest cells of MINI in latent space: of cells of MINI, or of new cells."""
    from atlasvi.engine.queries.answer_tables import write_frames
    from atlasvi.engine.queries.neighbours import NeighbourSearch, SearchOptions, check_columns, slice_neighbours

    _refuse_beside_exact(context, exact)
    reference, new = _open_reference(context, cells, missing_genes)
    if new is None:
        refuse_unused(context, ["missing_genes"], "the cells of MINI have no counts")
    elif of is not None:
        refuse_unused(context, ["of"], "it chooses cells of MINI, and there are new cells")
    shown = split_names(columns) or []
    check_columns(shown, reference)
    search = NeighbourSearch(reference, SearchOptions(k, by, recall, exact), _mark_all(reference, where), index)
    if new is None:
        tables = slice_neighbours(search, reference, _find_asked(reference, of, limit), shown)
    else:
        tables = slice_neighbours(search, new.cells, np.arange(new.cells.n_cells)[:limit], shown, new.model)
    rows = write_frames(tables, "cell", out)
    if out is not None:
        say(f"{out}: {count(rows, 'row')}.")


@query_app.command("annotate")
def query_annotate(
    context: typer.Context,
    new_cells: Annotated[
        str | None, typer.Argument(metavar="NEW", help="New counts: any source, PATH::layer=NAME.")
    ] = None,
    labels_key: Annotated[str, typer.Option(metavar="COLUMN", help="obs column of MINI with the labels.")] = ...,  # type: ignore[assignment]
    cells: NewCounts = None,
    limit: Limit = None,
    k: Annotated[int, typer.Option("-k", "--k", metavar="N", help="Neighbours of each cell.", min=1)] = 30,
    where: Among = None,
    n_samples: Annotated[int, typer.Option(metavar="N", help="Draws of z for each cell; 0: its mean.", min=0)] = 5,
    unknown: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of MINI's own cells that would be unknown.", min=0, max=0.99)
    ] = 0.01,
    columns: Annotated[
        str | None, typer.Option(metavar="COLUMNS", help="obs columns (donors, ...) to tell of the neighbours.")
    ] = None,
    recall: Recall = 0.97,
    exact: Exact = False,
    index: IndexPlace = None,
    missing_genes: MissingGenes = "refuse",
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Labels of new cells from their neighbours in MINI, with probabilities; "unknown" far from all of them."""
    from atlasvi.engine.queries.annotation import AnnotationOptions, Annotator
    from atlasvi.engine.queries.answer_tables import write_frames
    from atlasvi.engine.queries.neighbours import check_columns
    from atlasvi.engine.queries.question_cells import QueryError

    if new_cells is not None and cells is not None:
        raise QueryError(f"{new_cells} and --cells {cells} are both new cells: name one of them.")
    _refuse_beside_exact(context, exact)
    reference, new = _open_reference(context, cells if new_cells is None else new_cells, missing_genes)
    if new is None:
        raise QueryError("annotate needs new cells: atlasvi query MINI annotate NEW --labels-key COLUMN.")
    shown = split_names(columns) or []
    check_columns(shown, reference)
    options = AnnotationOptions(k, n_samples, unknown, seed, recall, exact)
    annotator = Annotator(reference, labels_key, options, _mark_all(reference, where), index)
    rows = write_frames(annotator.slice_labels(new, shown, limit), "cell", out)
    if out is not None:
        say(
            f"{out}: {count(rows, 'cell')}. On cells of MINI, judged by other batches, probabilities were off by "
            f"{annotator.calibration_error:.1%} on average."
        )


def _open_reference(
    context: typer.Context, cells: str | None, missing_genes: Any
) -> "tuple[MinifiedCells, NewCells | None]":
    """The cells of MINI, and the new cells of DATA or --cells, if there are any."""
    from atlasvi.engine.queries.new_cells import open_new_cells
    from atlasvi.engine.queries.opened_question import OpenedQuestion
    from atlasvi.engine.queries.question_cells import MinifiedCells, QueryError

    (place, data), options = context.meta["places"], context.parent.params if context.parent else {}
    if data is not None and cells is not None:
        raise QueryError(f"{data} and --cells {cells} are both new cells: name one of them.")
    opened = OpenedQuestion(place, None, options.get("model"), options.get("device", "cpu"))
    assert isinstance(opened.cells, MinifiedCells)
    data = cells if data is None else data
    if data is None:
        return opened.cells, None
    new = open_new_cells(data, opened.run, missing_genes)
    context.call_on_close(new.cells.source.close)
    return opened.cells, new


def _refuse_beside_exact(context: typer.Context, exact: bool) -> None:
    if exact:
        refuse_unused(context, ["recall", "index"], "--exact compares with every cell, without an index")


def _mark_all(reference: "MinifiedCells", where: list[str] | None) -> "np.ndarray | None":
    """bool [cells]: the cells of MINI that meet all conditions; None if there are no conditions."""
    from atlasvi.engine.queries.cell_choice import mark_cells

    masks = [mark_cells(reference, condition) for condition in where or ()]
    return np.logical_and.reduce(masks) if masks else None


def _find_asked(reference: "MinifiedCells", of: str | None, limit: int | None) -> "np.ndarray | None":
    """Ascending int64 indices of the cells of --of; None: all."""
    from atlasvi.engine.queries.cell_choice import choose_cells

    if of is None:
        return None if limit is None else np.arange(reference.n_cells)[:limit]
    if _is_filter(of, reference.obs_columns):
        return choose_cells(reference, where=[of], limit=limit)
    return choose_cells(reference, split_names(of), limit=limit)


def _is_filter(text: str, columns: list[str]) -> bool:
    """Whether text is COLUMN=VALUE or an expression that compares; "AAAC-1" is a name, and no subtraction."""
    if text.partition("=")[0] in columns and "=" in text:
        return True
    plain = "".join("name" if k % 2 else part for k, part in enumerate(text.split("`")))  # `quoted names`
    try:
        nodes = list(ast.walk(ast.parse(plain.strip(), mode="eval")))
    except (SyntaxError, ValueError):
        return False
    return any(isinstance(node, ast.Compare | ast.Call | ast.BoolOp | ast.Not) for node in nodes)
