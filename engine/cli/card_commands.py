"""`atlasvi card`: compute the card of a model, or check one."""

from typing import Annotated, Any

import typer

from atlasvi.engine.cli.arguments import Device, Seed, print_lines, refuse_unused
from atlasvi.engine.cli.dry_runs import DryRun, describe_estimate
from atlasvi.engine.cli.job_file import JobFile
from atlasvi.engine.terminal import count, say, show_progress
from atlasvi.loaders.places.object_path import to_place
from atlasvi.loaders.sources.data_spec import DataSpec, parse_source


def card(
    context: typer.Context,
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A finished run, or one of scvi-tools; with --check, a card's folder.")
    ],
    data: Annotated[str, typer.Argument(metavar="DATA", help="The data that it was trained on, or minified data.")],
    out: Annotated[str | None, typer.Option(metavar="PATH", help="The folder to make, on disk or in a bucket.")] = None,
    labels_key: Annotated[
        str | None, typer.Option(help="obs column of labels (default: that of the model, if any).")
    ] = None,
    batch_key: Annotated[str | None, typer.Option(help="obs column of batches (default: that of the model).")] = None,
    draws: Annotated[int, typer.Option(help="Draws of the counts of each cell.", min=1)] = 5,
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option(help="Cells drawn at a time.", min=1)] = 1024,
    device: Device = "auto",
    dask: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on the workers of this Dask scheduler.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compute the card in RUN again; status 1 if a figure moved.")
    ] = False,
    model: Annotated[
        str | None, typer.Option("--run", metavar="RUN", help="With --check: the run, if the card has no model.")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="Where the counts are, if not in X.")] = None,
    minified: Annotated[
        str | None, typer.Option(metavar="MINI", help="The cells, minified already; default: they are encoded.")
    ] = None,
    data_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Where all of the data can be had, for the README.")
    ] = None,
    dry_run: DryRun = False,
    config: JobFile = None,
) -> None:
    """Compute how well counts drawn from a model agree with real ones. After a kill, the same command continues."""
    spec = parse_source(data, layer=layer)
    if check:
        from atlasvi.engine.card.card_check import check_card

        refuse_unused(
            context,
            [
                "out",
                "labels_key",
                "batch_key",
                "draws",
                "seed",
                "batch_size",
                "dask",
                "minified",
                "data_url",
                "dry_run",
            ],
            "--check computes the card as it was made",
        )
        print_lines(check_card(run, spec, model, device=device))
        return
    refuse_unused(context, ["model"], "it is for --check alone")
    if out is None:
        context.fail("Missing option '--out': the folder to make.")
    options: dict[str, Any] = {"n_draws": draws, "seed": seed, "batch_size": batch_size, "device": device}
    if dry_run:
        from atlasvi.engine.card.card_estimate import estimate_card

        found = estimate_card(
            run, spec, out, labels_key=labels_key, batch_key=batch_key, is_minified=minified is not None, **options
        )
        print_lines(describe_estimate(found))
        return
    options["dask"] = dask
    files = {"minified": minified, "data_url": data_url}
    write_card(run, spec, out, labels_key=labels_key, batch_key=batch_key, **options, **files)


def write_card(run: str, data: DataSpec, out: str, **options: Any) -> None:
    """Compute a card, on all ranks, and say what it found."""
    from atlasvi.engine.card.model_card import METRICS
    from atlasvi.engine.card.page import PAGE
    from atlasvi.engine.distributed.ranks import join_ranks
    from atlasvi.engine.hub.card_folder import write_card_folder

    with join_ranks() as ranks, show_progress() as progress:
        found = write_card_folder(run, data, out, progress=progress, **options)
        if not ranks.is_first:
            return
    known = found.provenance
    speed = f"{known.cells_per_s:,.0f} cells/s, at most {known.peak_memory_bytes / 1e6:,.0f} MB"
    say(f"{out}: {count(known.n_cells, 'cell')}, {count(known.n_draws, 'draw')} each ({speed}).")
    for verdict in found.verdicts:
        if verdict.part in ("training", "validation"):
            itself = found.parts[verdict.part].attainable.get(verdict.block)
            say(
                f"  {verdict.part}, variation of {verdict.block}: squared Pearson "
                f"{verdict.squared_pearson.value:.2f}: {verdict.words}"
                + ("" if itself is None else f" (of a draw of the model itself: {itself.value:.2f})")
            )
    print_lines(f"  {note.subject}: {note.reason}" for note in found.notes)
    folder = to_place(out)
    say(f"  Open {folder / PAGE} in a browser; all figures are in {folder / METRICS}.")
