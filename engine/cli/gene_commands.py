"""`atlasvi query`: genes: their expression in groups of cells, similar genes, and correlations."""

from typing import Annotated, Literal

import typer

import atlasvi.engine.cli.query_commands  # noqa: F401  whose questions come first in the help
from atlasvi.engine.cli.answers import answer_frame, answer_slices
from atlasvi.engine.cli.arguments import Genes, LibrarySize, Top, TransformBatch, split_names
from atlasvi.engine.cli.cell_options import CellOptions
from atlasvi.engine.cli.query_app import split_batches
from atlasvi.engine.cli.question_command import question
from atlasvi.engine.queries.question import Answer, Asking, GroupsBy, NamesOf, NumberOrWord


@question("genes")
def query_genes(
    asking: Asking,
    pattern: Annotated[
        str | None, typer.Argument(metavar="[PATTERN]", help="Only names that contain it, or are like it: CD3*.")
    ] = None,
) -> Answer:
    """The genes of the model, with what is known of them: other names, ids ..."""
    from atlasvi.engine.queries.gene_names import GeneNames
    from atlasvi.engine.queries.question_cells import QueryError

    run = asking.open().run
    table = GeneNames(run.genes, run.var).table(pattern)
    if not len(table):
        raise QueryError(f"None of the {len(run.genes):,} genes has a name like {pattern!r}.")
    return answer_frame(table, "gene", "gene")


@question("aggregate")
def query_aggregate(
    asking: Asking,
    by: Annotated[
        str,
        typer.Option(metavar="COLUMNS", help="obs columns of the groups: NAME,NAME."),
        NamesOf("columns"),
        GroupsBy(),
    ],
    genes: Genes = None,
    library_size: LibrarySize = "1",
    transform_batch: TransformBatch = None,
    fraction_at: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Add the mean probability that a cell of this library size (a number, 'observed' or 'latent') has a "
            "count above 0.",
        ),
        NumberOrWord(),
    ] = None,
    max_cells: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Decode at most N cells of each group, chosen at random; adds standard errors.", min=1
        ),
    ] = None,
    *,
    asked: CellOptions,
) -> Answer:
    """Mean decoded expression of groups of cells."""
    from atlasvi.engine.queries.aggregate import aggregate

    opened = asking.open()
    found = aggregate(
        opened,
        split_names(by) or [],
        genes=split_names(genes),
        chosen=asked.choose(asking),
        library_size=library_size,
        transform_batch=split_batches(opened, transform_batch),
        fraction_at=fraction_at,
        max_cells=max_cells,
        seed=asked.seed,
        progress=asking.progress,
        check_size=asking.check_size,
    )
    return answer_frame(found.to_table(), "group")


@question("similar-genes")
def query_similar_genes(
    asking: Asking,
    genes: Annotated[str, typer.Option(help="Gene names: NAME,NAME or @FILE with one per line."), NamesOf("genes")],
    top: Top = 50,
    max_cells: Annotated[
        int, typer.Option(metavar="N", help="Use at most N cells, chosen at random; 0: all.", min=0)
    ] = 100_000,
    scale: Annotated[
        Literal["log", "linear"], typer.Option(help="log(1 + expression at 10,000 counts a cell), or proportions.")
    ] = "log",
    transform_batch: TransformBatch = None,
    n_samples: Annotated[
        int, typer.Option(help="Average over N draws of z; 0: decode the posterior mean.", metavar="N", min=0)
    ] = 0,
    *,
    asked: CellOptions,
) -> Answer:
    """Genes whose decoded expression correlates most with that of given genes."""
    from atlasvi.engine.queries.similar_genes import similar_genes

    opened, wanted = asking.open(), split_names(genes) or []
    asking.check_size(len(wanted) * len(opened.run.genes))
    table = similar_genes(
        opened,
        wanted,
        top=top or None,
        chosen=asked.choose(asking),
        max_cells=max_cells or None,
        scale=scale,
        transform_batch=split_batches(opened, transform_batch),
        n_samples=n_samples,
        seed=asked.seed,
        progress=asking.progress,
    )
    return answer_frame(table, "gene")


@question("correlation")
def query_correlation(
    asking: Asking,
    genes: Genes = None,
    method: Annotated[Literal["spearman", "pearson"], typer.Option(help="Use ranks, or values.")] = "spearman",
    transform_batch: TransformBatch = None,
    n_samples: Annotated[int, typer.Option(metavar="N", help="Draws per cell.", min=1)] = 10,
    max_cells: Annotated[
        int, typer.Option(metavar="N", help="At most N cells, chosen at random; all draws are in memory.", min=2)
    ] = 1_000,
    *,
    asked: CellOptions,
) -> Answer:
    """Correlations between genes, in expression drawn without the noise of counting."""
    import pandas as pd

    from atlasvi.engine.queries.cell_choice import sample_cells
    from atlasvi.engine.queries.correlation import correlate_genes
    from atlasvi.engine.queries.model_names import find_batches, find_genes
    from atlasvi.engine.queries.question_cells import take_chosen

    opened, wanted = asking.open(), split_names(genes)
    asking.check_size(min(max_cells, opened.cells.n_cells) * n_samples * len(wanted or opened.run.genes))
    generator, chosen = opened.make_generator(asked.seed), asked.choose(asking)
    matrix = correlate_genes(
        opened.run.model,
        opened.cells,
        generator,
        indices=sample_cells(take_chosen(chosen, 0, opened.cells.n_cells), max_cells, generator),
        columns=find_genes(opened.run, wanted, opened.cells.path),
        n_samples=n_samples,
        transform_batch=find_batches(opened.run, split_batches(opened, transform_batch)),
        correlation_type=method,
    )
    names = wanted or opened.run.genes
    return answer_slices(iter([(pd.Index(names), matrix)]), names, "gene", len(names))
