"""`atlasvi query`: groups of cells compared: marker genes, differential expression and abundance."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

import atlasvi.engine.cli.query_commands  # noqa: F401  whose questions come first in the help
from atlasvi.engine.cli.answers import answer_frame
from atlasvi.engine.cli.arguments import Seed, Top, check_finite
from atlasvi.engine.cli.cell_options import CellOptions, RowOptions
from atlasvi.engine.cli.query_app import split_known
from atlasvi.engine.cli.question_command import question
from atlasvi.engine.queries.question import Answer, Asking, CellsBy, GroupsBy, NamesOf


@dataclass(frozen=True)
class ChangeOptions:
    """What counts as a change, for questions about the size of changes."""

    top: Top = 50
    n_samples: Annotated[int, typer.Option(metavar="N", help="Draws of the posterior for each group.", min=1)] = 5_000
    delta: Annotated[
        float, typer.Option(help="Smaller log2 fold changes count as no change.", min=0, callback=check_finite)
    ] = 0.25
    fdr: Annotated[float, typer.Option(help="Expected false discovery rate.", min=0, max=1, callback=check_finite)] = (
        0.05
    )
    batch_correction: Annotated[
        bool, typer.Option("--batch-correction", help="Decode both groups as each of the batches in turn.")
    ] = False

    def to_arguments(self) -> dict[str, Any]:
        """The arguments of `markers` and `compare`."""
        return {
            "top": self.top or None,
            "n_samples": self.n_samples,
            "delta": self.delta,
            "fdr_target": self.fdr,
            "batch_correction": self.batch_correction,
        }


@question("markers")
def query_markers(
    asking: Asking,
    labels_key: Annotated[str, typer.Option(metavar="COLUMN", help="obs column of the labels."), GroupsBy()],
    labels: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Only these labels (default: all)."), NamesOf("labels")
    ] = None,
    *,
    change: ChangeOptions,
    asked: CellOptions,
) -> Answer:
    """Marker genes: each label compared with all other cells (of those chosen), the best markers first."""
    from atlasvi.engine.queries.markers import markers
    from atlasvi.loaders.cells.coded_columns import code_column

    opened = asking.open()
    table = markers(
        opened,
        labels_key,
        labels=None
        if labels is None
        else split_known(labels, lambda: code_column(opened.cells, labels_key).categories),
        chosen=asked.choose(asking),
        **change.to_arguments(),
        seed=asked.seed,
        progress=asking.progress,
    )
    return answer_frame(table, "gene")


@question("compare")
def query_compare(
    asking: Asking,
    first: Annotated[
        str, typer.Option(metavar="EXPRESSION", help="The cells: COLUMN=VALUE, or an expression over obs."), CellsBy()
    ],
    second: Annotated[
        str | None,
        typer.Option(metavar="EXPRESSION", help="The cells to compare with (default: all others)."),
        CellsBy(),
    ] = None,
    *,
    change: ChangeOptions,
    seed: Seed = 0,
) -> Answer:
    """Genes that differ between two selections of cells, the most certain changes first."""
    from atlasvi.engine.queries.markers import compare

    table = compare(
        asking.open(),
        first,
        second,
        **change.to_arguments(),
        seed=seed,
        progress=asking.progress,
    )
    return answer_frame(table, "gene")


@question("differential")
def query_differential(
    asking: Asking,
    groupby: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="obs column of the groups to compare."), GroupsBy()
    ] = None,
    group1: Annotated[
        str | None, typer.Option(help="Groups, separated by commas (default: all)."), NamesOf("labels")
    ] = None,
    group2: Annotated[str | None, typer.Option(help="The group to compare with (default: all other cells).")] = None,
    idx1: Annotated[
        str | None,
        typer.Option(metavar="EXPRESSION", help="Instead of groups: cells by COLUMN=VALUE or an expression over obs."),
        CellsBy(),
    ] = None,
    idx2: Annotated[
        str | None,
        typer.Option(metavar="EXPRESSION", help="The cells to compare with (default: all others)."),
        CellsBy(),
    ] = None,
    mode: Annotated[
        Literal["vanilla", "change"],
        typer.Option(help="vanilla: whether a gene is higher in the first group; change: the size of its change."),
    ] = "vanilla",
    delta: Annotated[
        float,
        typer.Option(
            help="For mode change: smaller log2 fold changes count as no change.", min=0, callback=check_finite
        ),
    ] = 0.25,
    fdr: Annotated[
        float,
        typer.Option(help="For mode change: expected false discovery rate.", min=0, max=1, callback=check_finite),
    ] = 0.05,
    batch_correction: Annotated[
        bool, typer.Option("--batch-correction", help="Decode both groups as each of the batches in turn.")
    ] = False,
    n_samples: Annotated[int, typer.Option(metavar="N", help="Draws for each group.", min=1)] = 5_000,
    seed: Seed = 0,
) -> Answer:
    """Genes that differ between groups of cells; if there are counts, with their statistics."""
    import pandas as pd

    from atlasvi.engine.queries.differential import differential_expression
    from atlasvi.engine.queries.draw_comparison import Test
    from atlasvi.engine.queries.question_cells import CountedCells

    if mode == "vanilla":
        asking.refuse_unused(["delta", "fdr"], "only --mode change uses it")
    if idx1 is None:
        asking.refuse_unused(["idx2"], "it is compared with --idx1, which is missing")
    else:
        asking.refuse_unused(["groupby", "group1", "group2"], "--idx1 chooses the cells")
    opened = asking.open()

    def list_groups() -> Iterable[Any]:
        return () if groupby is None else opened.cells.read_column(groupby).unique()

    test = Test(mode, delta, use_observed_batches=not batch_correction, n_samples_overall=n_samples)
    table = differential_expression(
        opened.run.model,
        opened.cells,
        pd.Index(opened.run.genes),
        opened.make_generator(seed),
        test,
        n_batches=opened.run.model.settings.n_batches,
        groupby=groupby,
        group1=None if group1 is None else split_known(group1, list_groups),
        group2=group2,
        idx1=idx1,
        idx2=idx2,
        all_stats=isinstance(opened.cells, CountedCells),
        fdr_target=fdr,
        progress=asking.progress,
    )
    return answer_frame(table, "gene")


@question("abundance")
def query_abundance(
    asking: Asking,
    sample_key: Annotated[str, typer.Option(metavar="COLUMN", help="obs column of the samples."), GroupsBy()],
    max_cells: Annotated[
        int | None,
        typer.Option(metavar="N", help="Use at most N cells of each sample, chosen at random.", min=1),
    ] = None,
    dof: Annotated[
        float | None,
        typer.Option(
            help="Degrees of freedom of Student's t for each cell; default: a normal.", min=0.01, callback=check_finite
        ),
    ] = None,
    *,
    asked: RowOptions,
) -> Answer:
    """Log-density of each cell's latent under the cells of each sample, in nats."""
    from atlasvi.engine.queries.abundance import slice_abundance

    opened = asking.open()
    chosen = asked.choose(asking)
    samples, slices = slice_abundance(
        opened.run.model,
        opened.cells,
        opened.cells,
        opened.make_generator(asked.seed),
        sample_key,
        chosen,
        max_cells,
        dof,
        progress=asking.progress,
        check_size=asking.check_size,
    )
    return asked.answer(asking, chosen, slices, map(str, samples))
