"""`atlasvi plot RUN`, the losses; `atlasvi embed`; `atlasvi query MINI plot`: an embedding, a dot plot, a heat map."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from atlasvi.engine.cli.arguments import (
    Genes,
    LibrarySize,
    TransformBatch,
    print_lines,
    split_names,
)
from atlasvi.engine.cli.cell_options import CellOptions
from atlasvi.engine.cli.dry_runs import DryRun, describe_estimate
from atlasvi.engine.cli.option_groups import spread
from atlasvi.engine.cli.query_app import split_batches
from atlasvi.engine.cli.query_commands import query_app
from atlasvi.engine.terminal import count, say, show_progress

if TYPE_CHECKING:  # imports torch, which `--help` does not need
    from atlasvi.engine.queries.opened_question import OpenedQuestion

plot_app = typer.Typer(no_args_is_help=True, help="A picture of the cells, or of genes in groups of cells.")
query_app.add_typer(plot_app, name="plot")


@dataclass(frozen=True)
class LookOptions:
    """Where a picture goes, and how it looks."""

    out: Annotated[Path, typer.Option(help="The picture: .png, .svg or .pdf.")] = ...  # type: ignore[assignment]
    replace: Annotated[bool, typer.Option("--replace", help="Replace a file of this name.")] = False
    title: Annotated[str | None, typer.Option(help="Title above the picture; '': none.")] = None
    font_size: Annotated[float, typer.Option(metavar="POINTS", help="Size of names.", min=3, max=40)] = 8.0
    width: Annotated[
        float | None, typer.Option(metavar="INCHES", help="Width of the picture (default: as it needs).", min=1)
    ] = None
    dpi: Annotated[int, typer.Option(metavar="N", help="Pixels in an inch.", min=30, max=1200)] = 300
    dark: Annotated[bool, typer.Option("--dark", help="Light text on a dark ground.")] = False

    def to_look(self) -> dict[str, Any]:
        """The arguments that all functions that draw have."""
        from atlasvi.engine.plots.style import Style

        style = Style(self.title, self.font_size, self.width, self.dpi, self.dark)
        return {"out": self.out, "replace": self.replace, "style": style}


@dataclass(frozen=True)
class PictureOptions(CellOptions, LookOptions):
    """Where a picture goes, how it looks, and which cells it is of."""

    colour_map: Annotated[
        str, typer.Option(metavar="NAME", help="Colours of numbers: viridis, cividis, magma, ... (of matplotlib).")
    ] = "viridis"

    def to_arguments(self, opened: "OpenedQuestion") -> dict[str, Any]:
        """The arguments that all functions that draw cells have."""
        chosen = self.choose_from(lambda: opened.cells, list(self.where or []))
        return {**self.to_look(), "chosen": chosen, "map_name": self.colour_map}


@spread
def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="A run, finished or not; or several.")],
    over: Annotated[
        Literal["epochs", "steps"], typer.Option(help="What the curves run over; steps: also inside long epochs.")
    ] = "epochs",
    *,
    look: LookOptions,
) -> None:
    """Draw the losses of a run: ELBO, reconstruction and KL of training and held-out cells."""
    from atlasvi.engine.plots.loss_plot import plot_losses

    plot_losses(runs, over=over, **look.to_look())
    say(f"{look.out}: written.")


def embed(
    mini: Annotated[Path, typer.Argument(metavar="MINI", help="A minified store.")],
    sample: Annotated[
        int, typer.Option(metavar="N", help="Cells that UMAP lays out; the others are placed beside them.", min=2)
    ] = 100_000,
    strata: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="obs column whose rarest values must be in the sample too."),
    ] = None,
    n_neighbours: Annotated[int, typer.Option("--neighbours", metavar="N", help="Neighbours of a cell.", min=2)] = 15,
    min_distance: Annotated[
        float, typer.Option(metavar="D", help="UMAP's min_dist: how close cells may lie.", min=0, max=1)
    ] = 0.4,
    seed: Annotated[int, typer.Option(help="The same seed gives the same coordinates.", min=0, max=2**64 - 1)] = 0,
    replace: Annotated[bool, typer.Option("--replace", help="Replace coordinates that are there.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Write two coordinates for each cell into MINI, by UMAP, for `query MINI plot embedding`."""
    from atlasvi.engine.queries.embed import embed as run

    options: dict[str, Any] = {
        "sample": sample,
        "strata": strata,
        "n_neighbours": n_neighbours,
        "min_distance": min_distance,
        "replace": replace,
    }
    if dry_run:
        from atlasvi.engine.queries.embed_estimate import estimate_embedding

        print_lines(describe_estimate(estimate_embedding(mini, **options)))
        return
    with show_progress() as progress:
        report = run(mini, **options, seed=seed, progress=progress)
    of_all = report.n_sample == report.n_cells
    made = f"{report.method} of all of them" if of_all else f"{report.method} of {report.n_sample:,} of them"
    faithful = "" if report.trustworthiness is None else f"; trustworthiness {report.trustworthiness:.3f}"
    say(f"{report.out}: coordinates of {count(report.n_cells, 'cell')}, {made}{faithful}.")
    say(f"  next: {shlex.join(['atlasvi', 'query', report.out])} plot embedding --by COLUMN --out map.png")


@plot_app.command("embedding")
@spread
def plot_embedding(
    context: typer.Context,
    by: Annotated[
        list[str] | None, typer.Option(metavar="COLUMNS", help="obs columns, a panel for each: NAME,NAME.")
    ] = None,
    genes: Genes = None,
    labels: Annotated[
        Literal["auto", "names", "numbers", "none"],
        typer.Option(help="On the map; auto: of more than eight categories."),
    ] = "auto",
    per_row: Annotated[int, typer.Option(metavar="N", help="Panels beside each other.", min=1)] = 2,
    point_size: Annotated[
        float | None, typer.Option(metavar="POINTS", help="Diameter of a cell (default: by their number).", min=0)
    ] = None,
    limits: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOW HIGH", help="Ends of the colour scale (default: all but 0.5% at either end)."),
    ] = None,
    library_size: LibrarySize = "10000",
    scale: Annotated[Literal["log", "linear"], typer.Option(help="log(1 + expression), or expression.")] = "log",
    transform_batch: TransformBatch = None,
    *,
    picture: PictureOptions,
) -> None:
    """The cells where `atlasvi embed` placed them, coloured by columns of obs and by the expression of genes."""
    from atlasvi.engine.cli.arguments import split_repeated
    from atlasvi.engine.plots.embedding_plot import plot_embedding as run

    opened = context.obj()
    with show_progress() as progress:
        run(
            opened,
            by=split_repeated(by) or (),
            genes=split_names(genes) or (),
            labels=labels,
            per_row=per_row,
            point_size=point_size,
            limits=limits,
            library_size=library_size,
            scale=scale,
            transform_batch=split_batches(opened, transform_batch),
            progress=progress,
            **picture.to_arguments(opened),
        )
    say(f"{picture.out}: written.")


@dataclass(frozen=True)
class GroupOptions:
    """Which groups and genes a dot plot or a heat map is of."""

    labels_key: Annotated[str, typer.Option(metavar="COLUMN", help="obs column of the groups.")] = ...  # type: ignore[assignment]
    genes: Annotated[
        str | None, typer.Option(help="NAME,NAME or @FILE with one per line (default: markers of each group).")
    ] = None
    top: Annotated[int, typer.Option(metavar="N", help="Markers of each group.", min=1)] = 3
    scale: Annotated[
        Literal["log", "linear", "gene"],
        typer.Option(help="log(1 + mean), the mean, or the mean of each gene from 0 to 1."),
    ] = "log"
    library_size: LibrarySize = "10000"
    max_cells: Annotated[
        int, typer.Option(metavar="N", help="Decode at most N cells of each group, at random; 0: all.", min=0)
    ] = 2_000

    def draw(self, context: typer.Context, kind: Literal["dots", "heatmap"], picture: PictureOptions) -> None:
        """Draw the picture."""
        from atlasvi.engine.cli.arguments import refuse_unused
        from atlasvi.engine.plots.group_plot import plot_groups

        if self.genes is not None:
            refuse_unused(context, ["top"], "--genes names the genes")
        opened = context.obj()
        with show_progress() as progress:
            plot_groups(
                opened,
                self.labels_key,
                kind=kind,
                genes=split_names(self.genes),
                top=self.top,
                scale=self.scale,
                library_size=self.library_size,
                max_cells=self.max_cells or None,
                seed=picture.seed,
                progress=progress,
                **picture.to_arguments(opened),
            )
        say(f"{picture.out}: written.")


@plot_app.command("dots")
@spread
def plot_dots(context: typer.Context, *, groups: GroupOptions, picture: PictureOptions) -> None:
    """Marker genes, or others, in groups of cells: mean expression, and the share of cells that express them."""
    groups.draw(context, "dots", picture)


@plot_app.command("heatmap")
@spread
def plot_heatmap(context: typer.Context, *, groups: GroupOptions, picture: PictureOptions) -> None:
    """Marker genes, or others, in groups of cells: mean expression."""
    groups.draw(context, "heatmap", picture)
