"""`atlasvi query`: marker genes, and two selections of cells compared."""

from typing import Annotated

import typer

from atlasvi.engine.cli.answers import write_whole_table
from atlasvi.engine.cli.arguments import CellNames, Limit, Out, Sample, Seed, Top, Where, check_finite
from atlasvi.engine.cli.query_commands import _choose, _split_known, query_app
from atlasvi.engine.terminal import show_progress

Samples = Annotated[int, typer.Option("--n-samples", metavar="N", help="Draws of the posterior for each group.", min=1)]
Delta = Annotated[
    float,
    typer.Option(help="Smaller log2 fold changes count as no change.", min=0, callback=check_finite),
]
Fdr = Annotated[
    float, typer.Option("--fdr", help="Expected false discovery rate.", min=0, max=1, callback=check_finite)
]
BatchCorrection = Annotated[
    bool, typer.Option("--batch-correction", help="Decode both groups as each of the batches in turn.")
]


@query_app.command("markers")
def query_markers(
    context: typer.Context,
    labels_key: Annotated[str, typer.Option(metavar="COLUMN", help="obs column of the labels.")],
    labels: Annotated[str | None, typer.Option(metavar="NAMES", help="Only these labels (default: all).")] = None,
    cells: CellNames = None,
    where: Where = None,
    limit: Limit = None,
    sample: Sample = None,
    top: Top = 50,
    n_samples: Samples = 5_000,
    delta: Delta = 0.25,
    fdr: Fdr = 0.05,
    batch_correction: BatchCorrection = False,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Marker genes: each label compared with all other cells (of those chosen), the best markers first."""
    from atlasvi.engine.queries.markers import markers
    from atlasvi.loaders.cells.coded_columns import code_column

    opened = context.obj()
    with show_progress() as progress:
        table = markers(
            opened,
            labels_key,
            labels=None
            if labels is None
            else _split_known(labels, lambda: code_column(opened.cells, labels_key).categories),
            chosen=_choose(opened, cells, where, limit, sample, seed),
            top=top or None,
            n_samples=n_samples,
            delta=delta,
            fdr_target=fdr,
            batch_correction=batch_correction,
            seed=seed,
            progress=progress,
        )
    write_whole_table(table, "gene", out)


@query_app.command("compare")
def query_compare(
    context: typer.Context,
    first: Annotated[
        str, typer.Option(metavar="EXPRESSION", help="The cells: COLUMN=VALUE, or an expression over obs.")
    ],
    second: Annotated[
        str | None, typer.Option(metavar="EXPRESSION", help="The cells to compare with (default: all others).")
    ] = None,
    top: Top = 50,
    n_samples: Samples = 5_000,
    delta: Delta = 0.25,
    fdr: Fdr = 0.05,
    batch_correction: BatchCorrection = False,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Genes that differ between two selections of cells, the most certain changes first."""
    from atlasvi.engine.queries.markers import compare

    with show_progress() as progress:
        table = compare(
            context.obj(),
            first,
            second,
            top=top or None,
            n_samples=n_samples,
            delta=delta,
            fdr_target=fdr,
            batch_correction=batch_correction,
            seed=seed,
            progress=progress,
        )
    write_whole_table(table, "gene", out)
