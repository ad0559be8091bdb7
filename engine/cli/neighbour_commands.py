"""`atlasvi index`, `atlasvi query MINI neighbours` and `atlasvi query MINI annotate`."""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import typer

import atlasvi.engine.cli.query_commands  # noqa: F401  whose questions come first in the help
from atlasvi.engine.cli.answers import answer_frames
from atlasvi.engine.cli.arguments import Limit, Seed, split_names
from atlasvi.engine.cli.question_command import question
from atlasvi.engine.queries.question import Answer, Asking, CellsBy, GroupsBy, NamesOf, OfThisMachine
from atlasvi.engine.terminal import count, say, show_progress

if TYPE_CHECKING:  # imports torch, which `--help` does not need
    from atlasvi.engine.queries.new_cells import NewCells
    from atlasvi.engine.queries.question_cells import MinifiedCells


K = Annotated[int, typer.Option("-k", "--k", metavar="N", help="Neighbours of each cell.", min=1)]


@dataclass(frozen=True)
class SearchFlags:
    """Whose neighbours are searched, among which cells of MINI, and how."""

    cells: Annotated[
        str | None,
        typer.Option(
            metavar="NEW", help="New counts (any source, PATH::layer=NAME), which the model encodes; DATA too."
        ),
        OfThisMachine(),
    ] = None
    limit: Limit = None
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=VALUE|EXPRESSION", help="Only cells of MINI for which this holds."),
    ] = None
    columns: Annotated[
        str | None,
        typer.Option(metavar="COLUMNS", help="obs columns of the neighbours to show: donors, ..."),
        NamesOf("columns"),
    ] = None
    recall: Annotated[
        float,
        typer.Option(metavar="SHARE", help="Share of the true neighbours that an index should find.", min=0.01, max=1),
    ] = 0.97
    exact: Annotated[bool, typer.Option("--exact", help="Compare with every cell, even if there is an index.")] = False
    index: Annotated[Path | None, typer.Option(help="The index, if it is not MINI.neighbours.")] = None
    missing_genes: Annotated[
        Literal["refuse", "zeros"], typer.Option(help="Genes of the model that NEW lacks: an error, or counts of zero.")
    ] = "refuse"

    def open_reference(self, asking: Asking, cells: str | None) -> "tuple[MinifiedCells, NewCells | None]":
        """The cells of MINI, and the new cells of DATA or of `cells`, if there are any."""
        from atlasvi.engine.queries.new_cells import choose_encoder, open_new_cells
        from atlasvi.engine.queries.question_cells import MinifiedCells, QueryError

        if self.exact:
            asking.refuse_unused(["recall", "index"], "--exact compares with every cell, without an index")
        data, opened = asking.new_cells, asking.open_reference()
        if data is not None and cells is not None:
            raise QueryError(f"{data} and --cells {cells} are both new cells: name one of them.")
        data = cells if data is None else data
        assert isinstance(opened.cells, MinifiedCells)
        if data is None:
            if asking.encoder is not None:
                raise QueryError(f"{opened.cells.path} has a model: leave --model out, which encodes new cells.")
            return opened.cells, None
        run = opened.run
        if asking.encoder is not None:
            assert opened.kept is not None
            run = choose_encoder(opened.kept, asking.encoder)
            run.model.to(opened.run.model.encoder.mean.weight.device)
        new = open_new_cells(data, run, self.missing_genes)
        asking.on_close(new.close)
        return opened.cells, new

    def list_columns(self, reference: "MinifiedCells") -> list[str]:
        """The columns to show. Raises ColumnError if one is missing."""
        from atlasvi.engine.queries.neighbours import check_columns

        shown = split_names(self.columns) or []
        check_columns(shown, reference)
        return shown

    def mark_reference(self, asking: Asking, reference: "MinifiedCells") -> "np.ndarray | None":
        """bool [cells]: the cells of MINI that meet all conditions; None if there are no conditions."""
        from atlasvi.engine.queries.cell_choice import mark_cells

        masks = [mark_cells(reference, condition) for condition in asking.list_conditions(self.where)]
        return np.logical_and.reduce(masks) if masks else None


def index(
    mini: Annotated[Path, typer.Argument(metavar="MINI", help="A minified store, or minified data of scvi-tools.")],
    out: Annotated[Path | None, typer.Option(help="The folder to make; default: MINI.neighbours, beside MINI.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same index.", min=0, max=2**64 - 1)] = 0,
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


@question("neighbours")
def query_neighbours(
    asking: Asking,
    of: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES|COLUMN=VALUE|EXPRESSION",
            help="Cells of MINI to find the neighbours of: NAME,NAME, @FILE with one per line, or a filter.",
        ),
        CellsBy(names=True),
    ] = None,
    k: K = 15,
    by: Annotated[
        Literal["mean", "posterior"],
        typer.Option(help="mean: distance of posterior means; posterior: 2-Wasserstein distance of posteriors."),
    ] = "mean",
    *,
    flags: SearchFlags,
) -> Answer:
    """The nearest cells of MINI in latent space: of cells of MINI, or of new cells."""
    from atlasvi.engine.queries.neighbours import NeighbourSearch, SearchOptions, slice_neighbours

    reference, new = flags.open_reference(asking, flags.cells)
    if new is None:
        asking.refuse_unused(["missing_genes"], "the cells of MINI have no counts")
    elif of is not None:
        asking.refuse_unused(["of"], "it chooses cells of MINI, and there are new cells")
    shown = flags.list_columns(reference)
    search = NeighbourSearch(
        reference,
        SearchOptions(k, by, flags.recall, flags.exact),
        flags.mark_reference(asking, reference),
        asking.index if flags.index is None else flags.index,
    )
    if new is None:
        chosen = _find_asked(reference, of, flags.limit)
        n_cells = reference.n_cells if chosen is None else len(chosen)
        tables = slice_neighbours(search, reference, chosen, shown)
    else:
        chosen = np.arange(new.cells.n_cells)[: flags.limit]
        n_cells, tables = len(chosen), slice_neighbours(search, new.cells, chosen, shown, new.model)
    return answer_frames(tables, "cell", n_rows=n_cells * min(k, reference.n_cells))


@question("annotate")
def query_annotate(
    asking: Asking,
    new_cells: Annotated[
        str | None, typer.Argument(metavar="NEW", help="New counts: any source, PATH::layer=NAME."), OfThisMachine()
    ] = None,
    labels_key: Annotated[
        str, typer.Option(metavar="COLUMN", help="obs column of MINI with the labels."), GroupsBy()
    ] = ...,  # type: ignore[assignment]
    k: K = 30,
    n_samples: Annotated[int, typer.Option(metavar="N", help="Draws of z for each cell; 0: its mean.", min=0)] = 5,
    unknown: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of MINI's own cells that would be unknown.", min=0, max=0.99)
    ] = 0.01,
    *,
    seed: Seed = 0,
    flags: SearchFlags,
) -> Answer:
    """Labels of new cells from their neighbours in MINI, with probabilities; "unknown" far from all of them."""
    from atlasvi.engine.queries.annotation import AnnotationOptions, Annotator
    from atlasvi.engine.queries.question_cells import QueryError

    if new_cells is not None and flags.cells is not None:
        raise QueryError(f"{new_cells} and --cells {flags.cells} are both new cells: name one of them.")
    reference, new = flags.open_reference(asking, flags.cells if new_cells is None else new_cells)
    if new is None:
        raise QueryError("annotate needs new cells: atlasvi query MINI annotate NEW --labels-key COLUMN.")
    shown = flags.list_columns(reference)
    options = AnnotationOptions(k, n_samples, unknown, seed, flags.recall, flags.exact)
    index = asking.index if flags.index is None else flags.index
    annotator = Annotator(reference, labels_key, options, flags.mark_reference(asking, reference), index)
    judges = "other batches" if reference.setup.keys.batch_key is not None else "the others"
    note = (
        f"On cells of MINI, judged by {judges}, probabilities were off by {annotator.calibration_error:.1%} on average."
    )
    n_rows = len(range(new.cells.n_cells)[: flags.limit])
    return answer_frames(annotator.slice_labels(new, shown, flags.limit), "cell", "cell", n_rows, note)


def _find_asked(
    reference: "MinifiedCells", of: "str | list[str] | np.ndarray | None", limit: int | None
) -> "np.ndarray | None":
    """Ascending int64 indices of the cells of --of; None: all."""
    from atlasvi.engine.queries.cell_choice import choose_cells
    from atlasvi.engine.queries.neighbours import check_columns
    from atlasvi.engine.queries.question_cells import QueryError

    if of is None:
        return None if limit is None else np.arange(reference.n_cells)[:limit]
    if isinstance(of, np.ndarray):
        return choose_cells(reference, where=of, limit=limit)
    if isinstance(of, str) and _is_filter(of, reference.obs_columns):
        return choose_cells(reference, where=[of], limit=limit)
    try:
        return choose_cells(reference, split_names(of), limit=limit)
    except QueryError:
        if isinstance(of, str) and "=" in of:  # neither a name nor a column that is there
            check_columns([of.partition("=")[0]], reference)
        raise


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
