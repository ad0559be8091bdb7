"""`atlasvi query`: questions that are answered with a row for each cell, or each draw."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import numpy as np
import typer

from atlasvi.engine.cli.answers import answer_number, answer_slices
from atlasvi.engine.cli.arguments import (
    CellNames,
    Genes,
    LibrarySize,
    TransformBatch,
    Where,
    print_lines,
    split_names,
)
from atlasvi.engine.cli.cell_options import RowOptions
from atlasvi.engine.cli.query_app import describe_places, split_batches
from atlasvi.engine.cli.query_app import query_app as query_app
from atlasvi.engine.cli.question_command import question
from atlasvi.engine.queries.question import Answer, Asking


@query_app.command("info")
def query_info(context: typer.Context) -> None:
    """Show what the minified data holds; with DATA, what both are."""
    print_lines(describe_places(context))


@question("count", to_file=False)
def query_count(asking: Asking, cells: CellNames = None, where: Where = None) -> Answer:
    """How many cells meet the conditions."""
    from atlasvi.engine.queries.cell_choice import count_cells

    return answer_number(count_cells(asking.open().cells, split_names(cells), asking.list_conditions(where)), "cells")


@question("latent", in_slices=True)
def query_latent(
    asking: Asking,
    variance: Annotated[bool, typer.Option("--variance", help="Add the variance of q(z | x).")] = False,
    *,
    asked: RowOptions,
) -> Answer:
    """Posterior mean of the latent of each cell."""
    from atlasvi.engine.queries.latents import slice_latents
    from atlasvi.engine.queries.question_cells import MinifiedCells

    opened, chosen = asked.open_without_draws(asking)
    slices = (
        (index, np.concatenate([qzm, qzv], axis=1) if variance else qzm)
        for index, qzm, qzv in slice_latents(opened.encoder, opened.cells, chosen)
    )
    cells = opened.cells
    n_latent = cells.kept.n_latent if isinstance(cells, MinifiedCells) else opened.run.model.n_latent
    names = [f"z{k}" for k in range(n_latent)] + [f"var{k}" for k in range(n_latent)] * variance
    return asked.answer(asking, chosen, slices, names)


@question("expression", in_slices=True)
def query_expression(
    asking: Asking,
    genes: Genes = None,
    library_size: LibrarySize = "1",
    transform_batch: TransformBatch = None,
    n_samples: Annotated[
        int, typer.Option(help="Average over N draws of z; 0: decode the posterior mean.", metavar="N", min=0)
    ] = 0,
    n_samples_overall: Annotated[
        int | None, typer.Option(metavar="N", help="N draws from all these cells together, one row per draw.", min=1)
    ] = None,
    weights: Annotated[
        Literal["uniform", "importance"],
        typer.Option(help="How these draws are chosen; importance: more often those that explain many cells."),
    ] = "uniform",
    *,
    asked: RowOptions,
) -> Answer:
    """Decoded, normalised expression of chosen genes in chosen cells."""
    from atlasvi.engine.queries.expression import slice_expression
    from atlasvi.engine.queries.population import slice_population

    if n_samples_overall is None:
        asking.refuse_unused(["weights"], "it chooses among draws from all cells together (--n-samples-overall N)")
    else:
        asking.refuse_unused(["n_samples"], "--n-samples-overall is the number of draws")
        asking.refuse_unused(["columns"], "a draw from all cells together (--n-samples-overall) is not of one cell")
    opened, wanted = asking.open(), split_names(genes)
    chosen, names = asked.choose(asking), wanted or opened.run.genes
    options: dict[str, Any] = {
        "genes": wanted,
        "transform_batch": split_batches(opened, transform_batch),
        "library_size": library_size,
    }
    model_and_cells = opened.run, opened.cells, chosen, opened.make_generator(asked.seed)
    if n_samples_overall is None:
        slices = slice_expression(*model_and_cells, **options, n_samples=n_samples)
        return asked.answer(asking, chosen, slices, names)
    slices = slice_population(*model_and_cells, n_samples_overall, **options, weights=weights)
    return answer_slices(slices, names, "draw", n_samples_overall)


@question("parameters", in_slices=True)
def query_parameters(
    asking: Asking,
    parameter: Annotated[Literal["mean", "dispersions", "dropout"], typer.Option(help="The parameter.")] = "mean",
    genes: Genes = None,
    transform_batch: TransformBatch = None,
    *,
    asked: RowOptions,
) -> Answer:
    """A parameter of the likelihood of the counts, at the posterior mean of each cell."""
    from atlasvi.engine.queries.likelihood_parameters import slice_parameter

    opened, chosen = asked.open_without_draws(asking)
    wanted, batches = split_names(genes), split_batches(opened, transform_batch)
    slices = slice_parameter(opened.run, opened.cells, chosen, parameter, wanted, batches)
    return asked.answer(asking, chosen, slices, wanted or opened.run.genes)


@question("library", in_slices=True)
def query_library(
    asking: Asking,
    *,
    asked: RowOptions,
) -> Answer:
    """Library size of each cell: the observed one, or its posterior mean if the model infers it."""
    from atlasvi.engine.queries.latents import slice_library
    from atlasvi.engine.queries.question_cells import name_cells

    opened, chosen = asked.open_without_draws(asking)
    slices = name_cells(opened.cells, chosen, slice_library(opened.run.model, opened.cells, chosen))
    return asked.answer(asking, chosen, slices, ["library"])


@question("batch-vectors")
def query_batch_vectors(
    asking: Asking,
    *,
    asked: RowOptions,
) -> Answer:
    """The embedding of each cell's batch, for a model that embeds batches."""
    from atlasvi.engine.queries.latents import batch_vectors
    from atlasvi.engine.queries.obs_rows import slice_cells

    opened, chosen = asked.open_without_draws(asking)
    parts = (
        (opened.cells.read_names(here), batch_vectors(opened.run.model, opened.cells, here))
        for _, here in slice_cells(chosen, opened.cells.n_cells)
    )
    names = [f"v{k}" for k in range(opened.run.model.settings.embedding_dim)]
    return asked.answer(asking, chosen, parts, names)


@question("sample", in_slices=True)
def query_sample(
    asking: Asking,
    genes: Genes = None,
    transform_batch: TransformBatch = None,
    n_samples: Annotated[int, typer.Option(metavar="N", help="Draws per cell, one row per draw.", min=1)] = 1,
    *,
    asked: RowOptions,
) -> Answer:
    """Counts drawn from the posterior predictive."""
    from atlasvi.engine.queries.predictive_counts import slice_counts, take_seed

    opened, wanted = asking.open(), split_names(genes)
    chosen = asked.choose(asking)
    slices = slice_counts(
        opened.run,
        opened.cells,
        chosen,
        take_seed(opened.make_generator(asked.seed)),
        genes=wanted,
        transform_batch=split_batches(opened, transform_batch),
        n_samples=n_samples,
    )
    names = ["sample"] * (n_samples > 1) + (wanted or opened.run.genes)
    return asked.answer(asking, chosen, slices, names, rows_per_cell=n_samples)


@question("elbo")
def query_elbo(
    asking: Asking,
    marginal: Annotated[
        int, typer.Option(metavar="N", help="Add the marginal log-likelihood, from N samples per cell.", min=0)
    ] = 0,
    mean: Annotated[bool, typer.Option("--mean", help="Only the mean over the cells.")] = False,
    *,
    asked: RowOptions,
) -> Answer:
    """ELBO, reconstruction error and KL of each cell, in nats. Needs DATA with counts."""
    import pandas as pd

    from atlasvi.engine.queries.model_fit import FIT_COLUMNS, slice_fit
    from atlasvi.engine.queries.question_cells import name_cells, need_counts

    if mean:
        asking.refuse_unused(["columns"], "the mean over the cells (--mean) is not of one cell")
    opened = asking.open()
    counted, chosen = need_counts(opened.cells, "the ELBO"), asked.choose(asking)
    parts = slice_fit(opened.run.model, counted, opened.make_generator(asked.seed), chosen, marginal)
    names = FIT_COLUMNS if marginal else FIT_COLUMNS[:-1]
    if mean:
        return answer_slices(iter([(pd.Index(["mean"]), _average(parts)[None])]), names, "row", 1)
    return asked.answer(asking, chosen, name_cells(opened.cells, chosen, parts), names)


def _average(parts: Iterable[np.ndarray]) -> np.ndarray:
    """The mean over all rows of arrays [rows, columns]. Raises QueryError if there are no rows."""
    from atlasvi.engine.queries.question_cells import QueryError

    sums, n = np.zeros(1), 0
    for part in parts:
        sums, n = sums + part.sum(0, dtype=np.float64), n + len(part)
    if n == 0:
        raise QueryError("No cell was chosen, so there is no mean.")
    return sums / n
