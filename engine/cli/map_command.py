"""`atlasvi map`: new cells mapped onto a trained model."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlasvi.engine.cli.arguments import (
    BatchSize,
    Device,
    Epochs,
    Metrics,
    Note,
    RankTimeout,
    Resume,
    RunSeed,
    RunSettings,
    SplitColumn,
    print_lines,
    split_repeated,
)
from atlasvi.engine.cli.data_options import DataOptions
from atlasvi.engine.cli.dry_runs import DryRun, describe_run_plan
from atlasvi.engine.cli.job_file import JobFile
from atlasvi.engine.cli.option_groups import spread

if TYPE_CHECKING:  # imports torch, which `--help` does not need
    from atlasvi.engine.model.model_options import Freezing


@dataclass(frozen=True)
class FreezingOptions:
    """Which parameters stay as they are, by the arguments of SCVI's `load_query_data`."""

    unfrozen: Annotated[bool, typer.Option("--unfrozen", help="Train all parameters; all latents change.")] = False
    free_expression: Annotated[
        bool, typer.Option("--free-expression", help="Train the encoder's first layer too; all latents change.")
    ] = False
    free_decoder_first_layer: Annotated[
        bool, typer.Option("--free-decoder-first-layer", help="Train the decoder's first layer too.")
    ] = False
    free_batchnorm_encoder: Annotated[
        bool, typer.Option("--free-batchnorm-encoder", help="Train its batch norms too; all latents change.")
    ] = False
    freeze_batchnorm_decoder: Annotated[
        bool, typer.Option("--freeze-batchnorm-decoder", help="Do not train its batch norms.")
    ] = False

    def to_freezing(self) -> "Freezing":
        """The same as the model's own value."""
        from atlasvi.engine.model.model_options import Freezing

        return Freezing(
            unfrozen=self.unfrozen,
            freeze_expression=not self.free_expression,
            freeze_decoder_first_layer=not self.free_decoder_first_layer,
            freeze_batchnorm_encoder=not self.free_batchnorm_encoder,
            freeze_batchnorm_decoder=self.freeze_batchnorm_decoder,
        )


@spread
def map_cells(
    context: typer.Context,
    reference: Annotated[
        str, typer.Argument(metavar="RUN|MINI", help="A finished run, a model, or a minified store with its model.")
    ],
    data: Annotated[str, typer.Argument(metavar="NEW", help="The new cells: a cell store, or any source.")],
    out: Annotated[str, typer.Option(metavar="PATH", help="The run directory to make, on disk or in a bucket.")],
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    device: Device = "auto",
    seed: RunSeed = None,
    split_column: SplitColumn = None,
    config: JobFile = None,
    settings: RunSettings = None,
    resume: Resume = False,
    metrics: Metrics = None,
    note: Note = None,
    dry_run: DryRun = False,
    rank_timeout: RankTimeout = 300.0,
    *,
    frozen: FreezingOptions,
    opening: DataOptions,
) -> None:
    """Map new cells onto a trained model (scArches): its weights stay, those of new batches are trained."""
    from atlasvi.engine.minified.minified_by_scvi_tools import open_minified
    from atlasvi.engine.minified.places import name_place
    from atlasvi.engine.scvi_tools.model_directories import open_model
    from atlasvi.engine.training.map_onto import estimate_mapping, map_onto
    from atlasvi.engine.training.settings import parse_settings
    from atlasvi.loaders.places.object_path import to_place

    is_minified = name_place(reference) in ("minified store", "minified data")
    run = replace(open_minified(reference).run if is_minified else open_model(reference), path=to_place(reference))
    chosen = {**context.meta.get("settings", {}), **parse_settings(settings or [])}
    chosen |= {name: n for name, n in (("epochs", epochs), ("batch_size", batch_size)) if n is not None}
    options: dict[str, Any] = {
        "freezing": frozen.to_freezing(),
        "device": device,
        "seed": seed,
        "split_column": split_column,
        "settings": chosen,
        "resume": resume,
        "metrics": split_repeated(metrics),
        "note": note,
    }
    if dry_run:
        print_lines(describe_run_plan(out, estimate_mapping(run, opening.to_spec(data), out, **options)))
        return
    map_onto(run, opening.to_spec(data), out, **options, rank_timeout_s=rank_timeout)
