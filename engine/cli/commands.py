"""The command line: each command calls a function that Python users can call too.

Commands about data and stores stand here, the others in files of their own; all are put together at the end.
"""

import gc
import logging
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from atlasvi.engine.cli import comparison_commands as comparison_commands  # adds its questions to query_app
from atlasvi.engine.cli import gene_commands as gene_commands
from atlasvi.engine.cli.arguments import (
    Device,
    GeneColumn,
    Layer,
    Measurement,
    RankTimeout,
    Seed,
    check_finite,
    print_lines,
    split_names,
)
from atlasvi.engine.cli.card_commands import card
from atlasvi.engine.cli.data_options import DataOptions
from atlasvi.engine.cli.dry_runs import DryRun, describe_estimate
from atlasvi.engine.cli.hub_commands import pull, push
from atlasvi.engine.cli.job_file import JobFile
from atlasvi.engine.cli.map_command import map_cells
from atlasvi.engine.cli.neighbour_commands import index
from atlasvi.engine.cli.option_groups import spread
from atlasvi.engine.cli.overview import show_way
from atlasvi.engine.cli.plot_commands import embed, plot
from atlasvi.engine.cli.query_commands import query_app
from atlasvi.engine.cli.query_group import AtlasviGroup
from atlasvi.engine.cli.serve_command import serve
from atlasvi.engine.cli.training_commands import launch, plan, train
from atlasvi.engine.distributed.signals import stop_on_signals
from atlasvi.engine.terminal import count, explain_errors, say, show_progress
from atlasvi.loaders.places.disk_cache import use_cache
from atlasvi.loaders.places.storage import parse_storage, use_storage

app = typer.Typer(
    cls=AtlasviGroup,
    name="atlasvi",
    help="Train scVI on atlases that do not fit in memory; keep the posterior, drop the counts.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"atlasvi {version('atlasvi')}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    wanted: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
    storage: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="How buckets are reached, anywhere in a command: endpoint=https://..., region=NAME, profile=NAME, "
            "anonymous=yes. Credentials come from the environment or the profile.",
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep what is read from buckets in this folder of the machine's own disk, so that it is read once; "
            "anywhere in a command.",
        ),
    ] = None,
    cache_gb: Annotated[
        float | None,
        typer.Option(metavar="GB", help="The most that --cache may take (default: 100).", callback=check_finite),
    ] = None,
) -> None:
    """The options of atlasvi itself; its help text is above."""
    if storage:
        use_storage(parse_storage(storage))
    if cache is not None:
        use_cache(cache, cache_gb)
    elif cache_gb is not None:
        raise typer.BadParameter("it is the size of --cache DIR: give both.", param_hint="'--cache-gb'")
    if context.invoked_subcommand is None:
        print_lines(show_way(version("atlasvi")))


def simulate(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The .h5ad file to write.")],
    cells: Annotated[int, typer.Option(help="Number of cells.", min=1)] = 20_259,
    genes: Annotated[int, typer.Option(help="Number of genes.", min=1)] = 3_000,
    batches: Annotated[int, typer.Option(help="Number of batches.", min=1)] = 3,
    types: Annotated[int, typer.Option(help="Number of cell types.", min=1)] = 12,
    seed: Seed = 0,
) -> None:
    """Draw counts from a known scVI-like process, and write its true parameters beside them."""
    from atlasvi.engine.simulation import simulate as run

    run(out, cells, genes, batches, types, seed)
    say(
        f"{out}: {count(cells, 'cell')} x {count(genes, 'gene')}, {count(batches, 'batch', 'batches')}, "
        f"{count(types, 'cell type')} (seed {seed})."
    )


def ingest(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC",
            help="h5ad, h5mu, Zarr, TileDB-SOMA, 10x h5 or mtx; PATH::layer=raw,gene_column=id for options, or a "
            "table of sources (.toml).",
        ),
    ],
    out: Annotated[str, typer.Option(metavar="PATH", help="The cell store to make, on disk or in a bucket.")],
    layer: Layer = None,
    genes: Annotated[
        Literal["union", "intersection"] | None,
        typer.Option(help="Genes of several sources, by name. Default: union, if they have at least half in common."),
    ] = None,
    gene_column: GeneColumn = None,
    measurement: Measurement = None,
    top_genes: Annotated[int | None, typer.Option(help="Keep N highly variable genes (seurat_v3).", min=1)] = None,
    batch_key: Annotated[str | None, typer.Option(help="obs column of batches, to choose variable genes in.")] = None,
    empty_cells: Annotated[
        Literal["refuse", "drop", "keep"], typer.Option(help="What to do with cells without counts.")
    ] = "refuse",
    rounded: Annotated[bool, typer.Option("--round", help="Round counts that a tool estimated as fractions.")] = False,
    seed: Seed = 0,
    profile: Annotated[Literal["fast", "small"], typer.Option(help="Fast to read, or a third smaller.")] = "fast",
    workers: Annotated[int | None, typer.Option(help="Number of processes (default: one per core).", min=1)] = None,
    dask: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on the workers of this Dask scheduler.")
    ] = None,
    dry_run: DryRun = False,
    config: JobFile = None,
) -> None:
    """Write count files as one cell store: checked, shuffled, compact. After a kill, the same command continues."""
    from atlasvi.engine.cli.describe import folder_bytes
    from atlasvi.loaders.ingestion.ingest import ingest as run

    options: dict[str, Any] = {
        "layer": layer,
        "genes": genes,
        "gene_column": gene_column,
        "measurement": measurement,
        "top_genes": top_genes,
        "batch_key": batch_key,
        "empty_cells": empty_cells,
        "rounded": rounded,
        "seed": seed,
        "profile": profile,
        "workers": workers,
        "dask": dask,
    }
    if dry_run:
        from atlasvi.loaders.ingestion.ingest_estimate import estimate_ingest

        print_lines(describe_estimate(estimate_ingest(sources, out, **options)))
        return
    with show_progress() as progress:
        report = run(sources, out, **options, progress=progress)
    size = folder_bytes(out)
    say(
        f"{out}: {count(report.n_cells, 'cell')} x {count(report.n_genes, 'gene')} from "
        f"{count(len(report.sources), 'source')}, {count(report.nnz, 'count')} "
        f"(largest {report.largest_count:,}), {size / 1e6:,.1f} MB, "
        f"{size / report.n_cells:,.0f} bytes per cell.",
    )
    print_lines(report.notes)
    for before, after in report.renamed_columns.items():
        say(f"obs column {_shorten(before)!r} is named {_shorten(after)!r} in the store: its name is not allowed.")
    if report.dropped_cells:
        say(f"Cells without counts that were dropped: {report.dropped_cells:,}.")
    if report.empty_cells:
        say(f"Cells without counts in these genes: {report.empty_cells:,} (--empty-cells drop leaves them out).")
    say(f"  next: {shlex.join(['atlasvi', 'train', str(out)])} --out run --batch-key COLUMN")


def annotate_obs(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="A cell store, or a minified store.")],
    table: Annotated[Path, typer.Argument(metavar="TABLE", help=".csv or .tsv (or .gz), one row per cell, any order.")],
    key: Annotated[
        str | None, typer.Option(help="Column of cell names (default: the first, or source and source_row).")
    ] = None,
    columns: Annotated[str | None, typer.Option(help="Columns to add: NAME,NAME (default: all others).")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Allow missing rows: the values are missing.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace columns that exist already.")] = False,
) -> None:
    """Add columns to obs of a finished store: clusters, labels, quality measures."""
    from atlasvi.loaders.cells.added_columns import add_obs_columns, read_table

    added = add_obs_columns(store, read_table(table, key, split_names(columns)), partial=partial, replace=replace)
    print_lines([f"{store}: added to obs: {', '.join(added)}."])


def info(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A source, store, run, model, card or minified data.")],
) -> None:
    """Show what a file or folder is and what it holds."""
    from atlasvi.engine.cli.describe import describe

    print_lines(describe(path))


def check(
    path: Annotated[str, typer.Argument(help="A cell store, minified store, run, model or source.")],
    renew: Annotated[
        bool, typer.Option("--renew", help="After a change: write a new list of files and checksums.")
    ] = False,
) -> None:
    """Compare every checksum and decode everything; status 1 if something is damaged."""
    from atlasvi.engine.cli.checking import check as run

    print_lines(run(path, renew))


@spread
def minify(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run directory, or one of scvi-tools.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="A cell store, or any source.")],
    out: Annotated[str, typer.Option(metavar="PATH", help="The minified store to make, on disk or in a bucket.")],
    source_order: Annotated[
        bool, typer.Option("--source-order", help="Keep cells in the order of their sources.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Cells encoded at a time.", min=1)] = 1024,
    device: Device = "auto",
    dask: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on the workers of this Dask scheduler.")
    ] = None,
    latents: Annotated[
        Literal["float32", "float16"], typer.Option(help="How latents are stored; float16 takes half the space.")
    ] = "float32",
    rank_timeout: RankTimeout = 300.0,
    dry_run: DryRun = False,
    config: JobFile = None,
    *,
    opening: DataOptions,
) -> None:
    """Encode every cell, keep its posterior, drop the counts. After a kill, the same command continues."""
    from atlasvi.engine.cli.describe import folder_bytes
    from atlasvi.engine.distributed.ranks import join_ranks
    from atlasvi.engine.minified.minify import minify as run_minify

    spec = opening.to_spec(data)
    options: dict[str, Any] = {
        "source_order": source_order,
        "batch_size": batch_size,
        "device": device,
        "latents": latents,
    }
    if dry_run:
        from atlasvi.engine.minified.minify_estimate import estimate_minify

        print_lines(describe_estimate(estimate_minify(run, spec, out, **options)))
        return
    with join_ranks(rank_timeout) as ranks, show_progress() as progress:
        report = run_minify(run, spec, out, **options, dask=dask, progress=progress)
        if not ranks.is_first:
            return
    size = folder_bytes(out)
    say(
        f"{out}: {count(report.n_cells, 'cell')}, {count(report.n_latent, 'latent dimension')}, "
        f"{size / 1e6:,.1f} MB, "
        f"{size / report.n_cells:,.0f} bytes per cell.",
    )
    say(f"  next: {shlex.join(['atlasvi', 'query', str(out)])}")


def export(
    path: Annotated[Path, typer.Argument(metavar="RUN|MINI", help="A finished run, or a minified store.")],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="The directory to make; for a minified store, the .h5ad file.")
    ],
) -> None:
    """Write a model or minified cells in scvi-tools' format."""
    from atlasvi.engine.minified.minified_h5ad import write_minified_h5ad
    from atlasvi.engine.minified.minified_store import is_minified_store
    from atlasvi.engine.scvi_tools.model_directories import open_model, save_scvi_tools

    if is_minified_store(path):
        write_minified_h5ad(path, out)
        opens = "scvi.model.SCVI.load(MODEL, anndata.read_h5ad(...)) and the model that the data was minified with"
    else:
        save_scvi_tools(open_model(path), out)
        opens = "scvi.model.SCVI.load(..., adata)"
    say(f"{out}: open it with {opens}.")


for command in (simulate, ingest, annotate_obs, info, check, plan, train):
    app.command()(command)
app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(launch)
app.command()(plot)
app.command("map")(map_cells)
app.command()(minify)
app.add_typer(query_app, name="query")
for command in (index, embed, serve, card, push, pull, export):
    app.command()(command)


def _shorten(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:57]}..."


def main() -> None:
    """Run the command line."""
    # Zarr reads members at once: where one is damaged, asyncio prints tracebacks of the others beside our sentence
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    # Imports make hundreds of thousands of objects that stay. At Python's own 700 new objects, the garbage collector
    # looks through all of them five times while torch and its like are imported: 0.3 s of the 2 s of a short command.
    gc.set_threshold(5_000, 10, 10)
    with explain_errors(), stop_on_signals():
        app(prog_name="atlasvi")  # instead of the name of the module that `launch` starts


if __name__ == "__main__":
    main()
