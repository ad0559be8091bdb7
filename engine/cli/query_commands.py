"""`atlasvi query`: one command for each question, which calls the function that answers it.

A new question needs a function of a model and cells in `engine/queries/`, and a command here. The file is long because
each question has its own options; it holds nothing else.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer

from atlasvi.engine.cli.answers import write_slices, write_whole_table
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
    check_finite,
    print_lines,
    refuse_unused,
    split_names,
)
from atlasvi.engine.cli.query_group import QueryGroup
from atlasvi.engine.terminal import say, show_progress

if TYPE_CHECKING:  # pandas takes half a second, and `--help` does not need it
    from atlasvi.engine.queries.opened_question import OpenedQuestion

query_app = typer.Typer(cls=QueryGroup, no_args_is_help=True)


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
        Path | None, typer.Option(help="Model of minified data of scvi-tools, if it is in another folder.")
    ] = None,
    device: Annotated[Literal["cpu", "cuda", "auto"], typer.Option(help="Where to compute.")] = "cpu",
) -> None:
    """Ask a model about cells: minified cells, which need no counts, or the cells of DATA."""

    def open_it() -> "OpenedQuestion":
        from atlasvi.engine.queries.opened_question import OpenedQuestion  # imports torch, which `--help` does not need

        opened = OpenedQuestion(place, data, model, device)
        context.call_on_close(opened.close)
        return opened

    context.obj = open_it
    context.meta["places"] = place, data


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

    _refuse_seed(context, sample)
    opened = context.obj()
    chosen = _choose(opened, cells, where, limit, sample, seed)
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
    chosen, names = _choose(opened, cells, where, limit, sample, seed), wanted or opened.run.genes
    options: dict[str, Any] = {
        "genes": wanted,
        "transform_batch": _split_batches(opened, transform_batch),
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

    _refuse_seed(context, sample)
    opened, wanted = context.obj(), split_names(genes)
    chosen, batches = _choose(opened, cells, where, limit, sample, seed), _split_batches(opened, transform_batch)
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

    _refuse_seed(context, sample)
    opened = context.obj()
    chosen = _choose(opened, cells, where, limit, sample, seed)
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

    _refuse_seed(context, sample)
    opened = context.obj()
    chosen = _choose(opened, cells, where, limit, sample, seed)
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
    chosen = _choose(opened, cells, where, limit, sample, seed)
    slices = slice_counts(
        opened.run,
        opened.cells,
        chosen,
        take_seed(opened.make_generator(seed)),
        genes=wanted,
        transform_batch=_split_batches(opened, transform_batch),
        n_samples=n_samples,
    )
    names = ["sample"] * (n_samples > 1) + (wanted or opened.run.genes)
    write_slices(slices, names, out, beside=(opened, chosen, columns), rows_per_cell=n_samples)


@query_app.command("differential")
def query_differential(
    context: typer.Context,
    groupby: Annotated[str | None, typer.Option(metavar="COLUMN", help="obs column of the groups to compare.")] = None,
    group1: Annotated[str | None, typer.Option(help="Groups, separated by commas (default: all).")] = None,
    group2: Annotated[str | None, typer.Option(help="The group to compare with (default: all other cells).")] = None,
    idx1: Annotated[
        str | None,
        typer.Option(metavar="EXPRESSION", help="Instead of groups: cells by COLUMN=VALUE or an expression over obs."),
    ] = None,
    idx2: Annotated[
        str | None, typer.Option(metavar="EXPRESSION", help="The cells to compare with (default: all others).")
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
    out: Out = None,
) -> None:
    """Genes that differ between groups of cells; if there are counts, with their statistics."""
    import pandas as pd

    from atlasvi.engine.queries.differential import differential_expression
    from atlasvi.engine.queries.draw_comparison import Test
    from atlasvi.engine.queries.question_cells import CountedCells

    if mode == "vanilla":
        refuse_unused(context, ["delta", "fdr"], "only --mode change uses it")
    if idx1 is None:
        refuse_unused(context, ["idx2"], "it is compared with --idx1, which is missing")
    else:
        refuse_unused(context, ["groupby", "group1", "group2"], "--idx1 chooses the cells")
    opened = context.obj()

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
        group1=None if group1 is None else _split_known(group1, list_groups),
        group2=group2,
        idx1=idx1,
        idx2=idx2,
        all_stats=isinstance(opened.cells, CountedCells),
        fdr_target=fdr,
    )
    write_whole_table(table, "gene", out)


@query_app.command("abundance")
def query_abundance(
    context: typer.Context,
    sample_key: Annotated[str, typer.Option(metavar="COLUMN", help="obs column of the samples.")],
    cells: CellNames = None,
    where: Where = None,
    limit: Limit = None,
    sample: Sample = None,
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
    columns: Columns = None,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Log-density of each cell's latent under the cells of each sample, in nats."""
    from atlasvi.engine.queries.abundance import slice_abundance

    opened = context.obj()
    chosen = _choose(opened, cells, where, limit, sample, seed)
    with show_progress() as progress:
        samples, slices = slice_abundance(
            opened.run.model,
            opened.cells,
            opened.cells,
            opened.make_generator(seed),
            sample_key,
            chosen,
            max_cells,
            dof,
            progress=progress,
        )
        write_slices(slices, map(str, samples), out, beside=(opened, chosen, columns))


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
    counted, chosen = need_counts(opened.cells, "the ELBO"), _choose(opened, cells, where, limit, sample, seed)
    parts = slice_fit(opened.run.model, counted, opened.make_generator(seed), chosen, marginal)
    names = FIT_COLUMNS if marginal else FIT_COLUMNS[:-1]
    if mean:
        write_slices(iter([(pd.Index(["mean"]), _average(parts)[None])]), names, out, "row")
    else:
        write_slices(name_cells(opened.cells, chosen, parts), names, out, beside=(opened, chosen, columns))


@query_app.command("correlation")
def query_correlation(
    context: typer.Context,
    genes: Genes = None,
    cells: CellNames = None,
    where: Where = None,
    limit: Limit = None,
    sample: Sample = None,
    method: Annotated[Literal["spearman", "pearson"], typer.Option(help="Use ranks, or values.")] = "spearman",
    transform_batch: TransformBatch = None,
    n_samples: Annotated[int, typer.Option(metavar="N", help="Draws per cell.", min=1)] = 10,
    max_cells: Annotated[
        int, typer.Option(metavar="N", help="At most N cells, chosen at random; all draws are in memory.", min=2)
    ] = 1_000,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Correlations between genes, in expression drawn without the noise of counting."""
    import pandas as pd

    from atlasvi.engine.queries.cell_choice import sample_cells
    from atlasvi.engine.queries.correlation import correlate_genes
    from atlasvi.engine.queries.model_names import find_batches, find_genes
    from atlasvi.engine.queries.question_cells import take_chosen

    opened, wanted = context.obj(), split_names(genes)
    generator, chosen = opened.make_generator(seed), _choose(opened, cells, where, limit, sample, seed)
    matrix = correlate_genes(
        opened.run.model,
        opened.cells,
        generator,
        indices=sample_cells(take_chosen(chosen, 0, opened.cells.n_cells), max_cells, generator),
        columns=find_genes(opened.run, wanted, opened.cells.path),
        n_samples=n_samples,
        transform_batch=find_batches(opened.run, _split_batches(opened, transform_batch)),
        correlation_type=method,
    )
    names = wanted or opened.run.genes
    write_slices(iter([(pd.Index(names), matrix)]), names, out, "gene")


def _choose(
    opened: "OpenedQuestion",
    names: str | None,
    where: list[str] | None,
    limit: int | None,
    sample: int | None = None,
    seed: int = 0,
) -> np.ndarray | None:
    """Ascending int64 indices of the chosen cells; None: all."""
    from atlasvi.engine.queries.cell_choice import choose_cells

    if names is None and not where and limit is None and sample is None:
        return None
    return choose_cells(opened.cells, split_names(names), where or [], limit, sample, seed)


def _refuse_seed(context: typer.Context, sample: int | None) -> None:
    """Refuse --seed where only --sample would use it."""
    if sample is None:
        refuse_unused(context, ["seed"], "only --sample uses it")


def _split_known(text: str, list_known: Callable[[], Iterable[Any]]) -> list[str]:
    """Names separated by commas; or the whole text if it is a known name, because names may contain commas."""
    if "," in text and text in map(str, list_known()):
        return [text]
    return split_names(text) or []


def _split_batches(opened: "OpenedQuestion", text: str | None) -> list[str] | None:
    return None if text is None else _split_known(text, lambda: opened.run.setup.batch_categories)


def _average(parts: Iterable[np.ndarray]) -> np.ndarray:
    """The mean over all rows of arrays [rows, columns]. Raises QueryError if there are no rows."""
    from atlasvi.engine.queries.question_cells import QueryError

    sums, n = np.zeros(1), 0
    for part in parts:
        sums, n = sums + part.sum(0, dtype=np.float64), n + len(part)
    if n == 0:
        raise QueryError("No cell was chosen, so there is no mean.")
    return sums / n
