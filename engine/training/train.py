"""Start or resume a training run: check and resolve its arguments, and make its run directory.

A run directory holds config.json (the resolved arguments and settings), metrics.jsonl and tensorboard/, checkpoints/,
and once finished model.pt and result.json. Losses are nats per cell: means over cells of sums over genes. `elbo` is the
evidence lower bound, so it is negative and larger is better: -(reconstruction_loss + kl).
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from atlasvi.engine.distributed.launch import launch_prefix
from atlasvi.engine.distributed.ranks import RANK_TIMEOUT_S, Ranks, join_ranks
from atlasvi.engine.distributed.signals import stop_on_signals
from atlasvi.engine.model.covariates import Setup, SetupKeys, learn_setup
from atlasvi.engine.model.likelihoods import takes_fractions
from atlasvi.engine.model.run_files import CONFIG, MODEL
from atlasvi.engine.model.trained_run import TrainedRun, load_run
from atlasvi.engine.provenance import Provenance, make_provenance
from atlasvi.engine.scvi_tools.model_directories import open_model
from atlasvi.engine.terminal import say
from atlasvi.engine.training.checkpoint_files import (
    load_checkpoint,
    read_newest_content,
    write_checkpoint,
)
from atlasvi.engine.training.metric_writers import check_writers
from atlasvi.engine.training.resuming import (
    check_new_run,
    check_note,
    merge_saved,
    prepare_start,
    read_data_spec,
    read_saved,
)
from atlasvi.engine.training.run_parts import RunParts, launch_id, prepare_run
from atlasvi.engine.training.settings import SettingError, Settings, resolve_settings
from atlasvi.engine.training.training_loop import Trainer
from atlasvi.loaders.cells.open_cells import CellData, allow_fractions, enter_cells, hash_counts, select_genes
from atlasvi.loaders.damage import reading
from atlasvi.loaders.manifest import write_json
from atlasvi.loaders.outputs import remove_leftovers, write_new_folder
from atlasvi.loaders.places.object_path import ObjectPath, Place, to_place
from atlasvi.loaders.sources.data_spec import DataSpec

log = logging.getLogger(__name__)


def train(
    data: CellData | DataSpec | str | Path,
    out: str | Path | ObjectPath,
    *,
    batch_key: str | None = None,
    labels_key: str | None = None,
    size_factor_key: str | None = None,
    categorical_covariate_keys: Sequence[str] | None = None,
    continuous_covariate_keys: Sequence[str] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    seed: int | None = None,
    split_column: str | None = None,
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    start: TrainedRun | str | Path | ObjectPath | None = None,
    resume: bool = False,
    profile: bool = False,
    metrics: Sequence[str] | None = None,
    note: str | None = None,
    rank_timeout_s: float = RANK_TIMEOUT_S,
) -> TrainedRun:
    """Train scVI on a cell store or on a source file, into a new run directory `out`, which may be in a bucket.

    data          a path, with options (PATH::layer=counts) or as a DataSpec; or opened cells. The default of an option
                  is its value in the run that is resumed or started from
    batch_key     obs column of the batches to correct for; None: no correction
    labels_key    obs column of cell labels: recorded, and used by the dispersion gene-label
    size_factor_key  obs column that the decoder scales by, instead of the library size
    categorical_covariate_keys, continuous_covariate_keys  obs columns of further covariates to correct for
    device        'auto', 'cpu' or 'cuda'
    split_column  obs column with train, validation or test for each cell; None: hold cells out by a hash
    config        TOML file of settings; `settings` override it, epochs and batch_size override both (see `Settings`)
    start         a run of ours or of scvi-tools to train further: it provides the model, the names of the columns and,
                  if it holds them, optimizer, counts of epochs and steps, and history; `epochs` are added
    resume        continue from the last good checkpoint of `out`; arguments that are left out are as before
    profile       write a trace of some steps to `out`/profile and print how long their parts took
    metrics       where metrics go besides the run's own files: 'tensorboard', 'mlflow', 'wandb', 'openmetrics' (see
                  `metric_writers`). Default: tensorboard, if it is installed
    note          what you say of the run: kept in its provenance, and in that of all that is made from it
    rank_timeout_s  seconds after which a rank that hangs or sends no heartbeat ends the run (see `join_ranks`)
    The same seed, data and settings give the same run, even if it was interrupted and resumed. Under torchrun or
    `atlasvi launch`, call this the same way on all ranks; minibatches and random draws, and so the losses, are those
    of a single process. A group that torchrun restarts continues from the last checkpoint.
    Raises OutputError if `out` exists (to resume: if it doesn't), ColumnError, CountsError, SettingError for bad input,
    TrainingError if the loss or the weights become NaN or infinite, TrainingInterrupted after SIGTERM or SIGINT, once
    a checkpoint is written, RankError if another rank failed.
    """
    folder = to_place(out)
    with join_ranks(rank_timeout_s) as ranks, stop_on_signals() as signals, ExitStack() as ours:
        prepared = prepare_training(
            ranks,
            ours,
            data,
            folder,
            SetupKeys(
                batch_key=batch_key,
                labels_key=labels_key,
                size_factor_key=size_factor_key,
                categorical_covariate_keys=tuple(categorical_covariate_keys or ()),
                continuous_covariate_keys=tuple(continuous_covariate_keys or ()),
            ),
            resolve_settings(config, settings or {}, {"epochs": epochs, "batch_size": batch_size}),
            {"seed": seed, "split_column": split_column},
            device=device,
            start=start,
            resume=resume,
            profile=profile,
            metrics=metrics,
            note=note,
        )
        if isinstance(prepared, TrainedRun):
            if ranks.is_first:
                say(f"{folder}: the run is finished already, so there is nothing to resume.", error=True)
            return prepared
        if prepared.is_resumed and ranks.is_first:
            remove_leftovers(folder, in_bucket=True)
        elif ranks.is_first:
            ranks.note("making the run directory")
            kept = prepared.settings.checkpoints_kept
            with write_new_folder(folder) as scratch:  # with a first checkpoint, so that there always is a good one
                (scratch / "result").mkdir()
                write_json(scratch / "result" / CONFIG, prepared.parts.config)
                write_checkpoint(scratch / "result" / "checkpoints", 0, prepared.save_state(), kept)
        return prepared.run(signals)


def prepare_training(
    ranks: Ranks,
    ours: ExitStack,
    data: CellData | DataSpec | str | Path,
    out: Place,
    keys: SetupKeys,
    resolved: Settings,
    given: Mapping[str, Any],
    *,
    device: str = "auto",
    start: TrainedRun | str | Path | ObjectPath | None = None,
    resume: bool = False,
    profile: bool = False,
    metrics: Sequence[str] | None = None,
    note: str | None = None,
) -> Trainer | TrainedRun:
    """All that comes before the first step of `train`, whose arguments these are; nothing is written.

    ours   closes what is opened
    given  seed and split column, as they were given
    Returns the finished run if there is nothing left to train. Raises the errors of `train`.
    """
    check_writers(metrics)
    arguments: dict[str, Any] = {**keys.as_arguments(), **given}
    if arguments["seed"] is not None and arguments["seed"] < 0:
        raise SettingError(f"seed {arguments['seed']}: use a whole number from 0 up.")
    like, saved = None, dict[str, Any]()  # how the data was opened before, and the configuration of a run to resume
    if resume := ranks.from_first(lambda: resume or _is_ours(out, ranks), "the start"):
        saved = ranks.from_first(lambda: read_saved(out), "the configuration")
        like = read_data_spec(out, saved)
    elif ranks.is_first:
        check_new_run(out)
    if start is not None and not resume:
        start = start if isinstance(start, TrainedRun) else open_model(start)
        like = start.like
    ranks.note("opening the data")
    data = enter_cells(data, ours, like)
    if resume:
        data = allow_fractions(data, takes_fractions(saved["settings"].get("gene_likelihood")))
        if saved.get("genes"):
            data = select_genes(data, saved["genes"])
        arguments, resolved = merge_saved(out, saved, arguments, resolved, data)
        check_note(out, saved, note)
        if "mapped_from" in saved:
            arguments["mapped_from"] = saved["mapped_from"]
        if ranks.from_first((out / MODEL).is_file, "the start"):
            return load_run(out)
    arguments["seed"] = arguments["seed"] or 0
    ranks.note("reading the covariates")
    if resume and "setup" in saved:
        with reading(str(out / CONFIG)):
            setup = Setup.from_saved(saved["setup"])
    elif isinstance(start, TrainedRun):
        data, setup, resolved, first = prepare_start(start, data, keys.as_arguments(), resolved)
        arguments["genes"] = [str(gene) for gene in data.genes]  # the genes of the model; the data may have more
        if start.mapped_from is not None:
            arguments["mapped_from"] = vars(start.mapped_from)
    else:
        data = allow_fractions(data, resolved.likelihood.takes_fractions)
        setup = learn_setup(data, SetupKeys.from_arguments(arguments), layer=data.layer)
    parts = prepare_run(data, out, setup, arguments, resolved, device, ranks)
    of = start.provenance if isinstance(start, TrainedRun) else None
    parts.config["provenance"] = saved.get("provenance") if resume else _make_provenance(parts, note, of)
    trainer = Trainer(parts, profile, metrics, is_resumed=resume)
    if not resume:
        parts.check_watched()
    if resume:
        ranks.note("reading the checkpoint")
        content = ranks.bytes_from_first(lambda: read_newest_content(out / "checkpoints")[1], "the checkpoint")
        with reading(f"{out / 'checkpoints'}"):
            trainer.restore(load_checkpoint(content, f"{out / 'checkpoints'}"))
        if like is not None and like.format != data.spec.format and trainer.state.batch and ranks.is_first:
            log.warning(
                "%s: the run was started with %s and goes on with %s: if the cells are in another order there, the "
                "rest of epoch %d visits some cells twice and others not at all; later epochs are complete.",
                *(out, like, data.spec, trainer.state.epoch),
            )
    elif isinstance(start, TrainedRun):
        with reading(str(start.path)):
            trainer.begin_from(first)
        if start.is_new:
            parts.start_weights()
    else:
        parts.measure_library()
        parts.start_weights()
    return trainer


def _is_ours(out: Place, ranks: Ranks) -> bool:
    """Whether torchrun has restarted the group, and an earlier attempt of this same launch made the run."""
    return ranks.restarted and (out / CONFIG).is_file() and read_saved(out).get("launch") == launch_id()


def _make_provenance(parts: RunParts, note: str | None, of: Provenance | None) -> dict[str, Any]:
    """The provenance of a new run, as config.json holds it. of: that of the run it starts from."""
    column, held_out = parts.config["split_column"], parts.settings.validation_fraction
    return make_provenance(
        launch_prefix(),
        note=note,
        counts=hash_counts(parts.data),
        genes=parts.config["genes_sha256"],
        split=f"obs column {column!r}" if column else f"{held_out:g} of the cells held out by a hash of each",
        seed=parts.seed,
        of=of,
    ).to_record()
