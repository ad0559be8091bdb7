"""`atlasvi query`: questions that are answered with a row for each cell, or each draw."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer

from atlasvi.engine.cli.answers import write_slices
from atlasvi.engine.cli.arguments import (
    CellNames,
    Columns,
    Genes,
    Limit,
    Out,
    Sample,
    Seed,
    TransformBatch,
    Where,
    print_lines,
    refuse_unused,
    split_names,
)
from atlasvi.engine.cli.query_app import choose, refuse_seed, split_batches
from atlasvi.engine.cli.query_app import query_app as query_app
from atlasvi.engine.terminal import say

if TYPE_CHECKING:  # pandas takes half a second, and `--help` does not need it
    pass


@query_app.command("info")
def query_info(context: typer.Context) -> None:
    """Show what the minified data holds; with DATA, what both are."""
    from atlasvi.engine.cli.describe import describe, describe_minified_store

    places = context.meta["places"]
    if places[1] is None:
        print_lines(describe_minified_store(context.obj().kept))
    else:
        for place in places:
            print_lines(describe(place))


@query_app.command("count")
def query_count(context: typer.Context, cells: CellNames = None, where: Where = None) -> None:
    """How many cells meet the conditions."""
    from atlasvi.engine.queries.cell_choice import count_cells

    say(str(count_cells(context.obj().cells, split_names(cells), where or [])))


@query_app.command("latent")
def query_latent(
    context: typer.Context,
    cells: CellNames = None,
    where: Where = None,
    limit: Limit = None,
    sample: Sample = None,
    variance: Annotated[bool, typer.Option("--variance", help="Add the variance of q(z | x).")] = False,
    columns: Columns = None,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Posterior mean of the latent of each cell."""
    from atlasvi.engine.queries.latents import slice_latents

    refuse_seed(context, sample)
    opened = context.obj()
    chosen = choose(opened, cells, where, limit, sample, seed)
    slices = (
        (index, np.concatenate([qzm, qzv], axis=1) if variance else qzm)
        for index, qzm, qzv in slice_latents(opened.encoder, opened.cells, chosen)
    )
    n_latent = opened.cells.kept.n_latent if opened.encoder is None else opened.encoder.n_latent
    names = [f"z{k}" for k in range(n_latent)] + [f"var{k}" for k in range(n_latent)] * variance
    write_slices(slices, names, out, beside=(opened, chosen, columns))


@query_app.command("expression")
def query_expression(
    context: typer.Context,
    genes: Genes = None,
    cells: CellNames = None,
    where: Where = None,
    limit: Limit = None,
    sample: Sample = None,
    library_size: Annotated[
        str, typer.Option(help="Counts to scale each cell to; 'observed': its own; 'latent': the inferred ones.")
    ] = "1",
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
    columns: Columns = None,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Decoded, normalised expression of chosen genes in chosen cells."""
    from atlasvi.engine.queries.expression import slice_expression
    from atlasvi.engine.queries.population import slice_population

    if n_samples_overall is None:
        refuse_unused(context, ["weights"], "it chooses among draws from all cells together (--n-samples-overall N)")
    else:
        refuse_unused(context, ["n_samples"], "--n-samples-overall is the number of draws")
        refuse_unused(context, ["columns"], "a draw from all cells together (--n-samples-overall) is not of one cell")
    opened, wanted = context.obj(), split_names(genes)
    chosen, names = choose(opened, cells, where, limit, sample, seed), wanted or opened.run.genes
    options: dict[str, Any] = {
        "genes": wanted,
        "transform_batch": split_batches(opened, transform_batch),
        "library_size": library_size,
    }
    model_and_cells = opened.run, opened.cells, chosen, opened.make_generator(seed)
    if n_samples_overall is None:
        slices = slice_expression(*model_and_cells, **options, n_samples=n_samples)
        write_slices(slices, names, out, beside=(opened, chosen, columns))
    else:
        slices = slice_population(*model_and_cells, n_samples_overall, **options, weights=weights)
        write_slices(slices, names, out, "draw")


@query_app.command("parameters")
def query_parameters(
    context: typer.Context,
    parameter: Annotated[Literal["mean", "dispersions", "dropout"], typer.Option(help="The parameter.")] = "mean",
    genes: Genes = None,
    cells: CellNames = None,
    where: Where = None,
    limit: Limit = None,
    sample: Sample = None,
    transform_batch: TransformBatch = None,
    columns: Columns = None,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """A parameter of the likelihood of the counts, at the posterior mean of each cell."""
    from atlasvi.engine.queries.likelihood_parameters import slice_parameter

    refuse_seed(context, sample)
    opened, wanted = context.obj(), split_names(genes)
    chosen, batches = choose(opened, cells, where, limit, sample, seed), split_batches(opened, transform_batch)
    slices = slice_parameter(opened.run, opened.cells, chosen, parameter, wanted, batches)
    write_slices(slices, wanted or opened.run.genes, out, beside=(opened, chosen, columns))


@query_app.command("library")
def query_library(
    context: typer.Context,
    cells: CellNames = None,
    where: Where = None,
    limit: Limit = None,
    columns: Columns = None,
    sample: Sample = None,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Library size of each cell: the observed one, or its posterior mean if the model infers it."""
    from atlasvi.engine.queries.latents import slice_library
    from atlasvi.engine.queries.question_cells import name_cells

    refuse_seed(context, sample)
    opened = context.obj()
    chosen = choose(opened, cells, where, limit, sample, seed)
    slices = name_cells(opened.cells, chosen, slice_library(opened.run.model, opened.cells, chosen))
    write_slices(slices, ["library"], out, beside=(opened, chosen, columns))


@query_app.command("batch-vectors")
def query_batch_vectors(
    context: typer.Context,
    cells: CellNames = None,
    where: Where = None,
    limit: Limit = None,
    columns: Columns = None,
    sample: Sample = None,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """The embedding of each cell's batch, for a model that embeds batches."""
    from atlasvi.engine.queries.latents import batch_vectors
    from atlasvi.engine.queries.obs_rows import slice_cells

    refuse_seed(context, sample)
    opened = context.obj()
    chosen = choose(opened, cells, where, limit, sample, seed)
    parts = (
        (opened.cells.read_names(here), batch_vectors(opened.run.model, opened.cells, here))
        for _, here in slice_cells(chosen, opened.cells.n_cells)
    )
    names = [f"v{k}" for k in range(opened.run.model.settings.embedding_dim)]
    write_slices(parts, names, out, beside=(opened, chosen, columns))


@query_app.command("sample")
def query_sample(
    context: typer.Context,
    genes: Genes = None,
    cells: CellNames = None,
    where: Where = None,
    limit: Limit = None,
    sample: Sample = None,
    transform_batch: TransformBatch = None,
    n_samples: Annotated[int, typer.Option(metavar="N", help="Draws per cell, one row per draw.", min=1)] = 1,
    columns: Columns = None,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Counts drawn from the posterior predictive."""
    from atlasvi.engine.queries.predictive_counts import slice_counts, take_seed

    opened, wanted = context.obj(), split_names(genes)
    chosen = choose(opened, cells, where, limit, sample, seed)
    slices = slice_counts(
        opened.run,
        opened.cells,
        chosen,
        take_seed(opened.make_generator(seed)),
        genes=wanted,
        transform_batch=split_batches(opened, transform_batch),
        n_samples=n_samples,
    )
    names = ["sample"] * (n_samples > 1) + (wanted or opened.run.genes)
    write_slices(slices, names, out, beside=(opened, chosen, columns), rows_per_cell=n_samples)


@query_app.command("elbo")
def query_elbo(
    context: typer.Context,
    cells: CellNames = None,
    where: Where = None,
    limit: Limit = None,
    sample: Sample = None,
    marginal: Annotated[
        int, typer.Option(metavar="N", help="Add the marginal log-likelihood, from N samples per cell.", min=0)
    ] = 0,
    mean: Annotated[bool, typer.Option("--mean", help="Only the mean over the cells.")] = False,
    columns: Columns = None,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """ELBO, reconstruction error and KL of each cell, in nats. Needs DATA with counts."""
    import pandas as pd

    from atlasvi.engine.queries.model_fit import FIT_COLUMNS, slice_fit
    from atlasvi.engine.queries.question_cells import name_cells, need_counts

    if mean:
        refuse_unused(context, ["columns"], "the mean over the cells (--mean) is not of one cell")
    opened = context.obj()
    counted, chosen = need_counts(opened.cells, "the ELBO"), choose(opened, cells, where, limit, sample, seed)
    parts = slice_fit(opened.run.model, counted, opened.make_generator(seed), chosen, marginal)
    names = FIT_COLUMNS if marginal else FIT_COLUMNS[:-1]
    if mean:
        write_slices(iter([(pd.Index(["mean"]), _average(parts)[None])]), names, out, "row")
    else:
        write_slices(name_cells(opened.cells, chosen, parts), names, out, beside=(opened, chosen, columns))


def _average(parts: Iterable[np.ndarray]) -> np.ndarray:
    """The mean over all rows of arrays [rows, columns]. Raises QueryError if there are no rows."""
    from atlasvi.engine.queries.question_cells import QueryError

    sums, n = np.zeros(1), 0
    for part in parts:
        sums, n = sums + part.sum(0, dtype=np.float64), n + len(part)
    if n == 0:
        raise QueryError("No cell was chosen, so there is no mean.")
    return sums / n
