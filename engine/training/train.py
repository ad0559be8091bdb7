"""Start a training run, or go on with one: what was asked, checked and resolved, and its run directory.

A run directory holds config.json (what was asked, as it was resolved), metrics.jsonl and tensorboard/, checkpoints/,
and once finished model.pt and result.json. Losses are nats a cell: means over cells of sums over genes. `elbo` is the
evidence lower bound, so it is negative and larger is better: -(reconstruction_loss + kl).
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from atlasvi.engine.distributed.ranks import RANK_TIMEOUT_S, Ranks, join_ranks
from atlasvi.engine.distributed.signals import stop_on_signals
from atlasvi.engine.model.covariates import Setup, SetupKeys, learn_setup
from atlasvi.engine.model.likelihoods import takes_fractions
from atlasvi.engine.model.trained_run import CONFIG, MODEL, TrainedRun, load_run
from atlasvi.engine.scvi_tools.model_directories import open_model
from atlasvi.engine.terminal import say
from atlasvi.engine.training.checkpoint import (
    load_checkpoint,
    read_newest_content,
    write_checkpoint,
)
from atlasvi.engine.training.resuming import (
    explain_taken,
    merge_saved,
    prepare_start,
    read_data_spec,
    read_saved,
)
from atlasvi.engine.training.run_parts import launch_id, prepare_run
from atlasvi.engine.training.settings import SettingError, resolve_settings
from atlasvi.engine.training.training_loop import Trainer
from atlasvi.loaders.cells.open_cells import CellData, allow_fractions, open_cells, select_genes
from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import OutputError
from atlasvi.loaders.manifest import write_json
from atlasvi.loaders.outputs import check_output_free, remove_leftovers, write_folder_aside
from atlasvi.loaders.sources.data_spec import DataSpec


def train(
    data: CellData | DataSpec | str | Path,
    out: str | Path,
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
    start: TrainedRun | str | Path | None = None,
    resume: bool = False,
    profile: bool = False,
    rank_timeout_s: float = RANK_TIMEOUT_S,
) -> TrainedRun:
    """Train scVI on a cell store or straight from a source, into a new run directory `out`.

    data          a path, with options (PATH::layer=counts) or as a DataSpec; or cells that are open. Options that are
                  not given are those of the run that is resumed or started from
    batch_key     obs column of the batches to correct for; None trains without
    labels_key    obs column of cell labels: recorded, and used by the dispersion gene-label
    size_factor_key  obs column that the decoder scales by, instead of the library size
    categorical_covariate_keys, continuous_covariate_keys  obs columns of what else is to be corrected for
    device        'auto', 'cpu' or 'cuda'
    split_column  obs column that says train, validation or test for each cell; else a share is held out by a hash
    config        TOML file of settings; `settings` win over it, and epochs and batch_size over both (see `Settings`)
    start         a run to train further, ours or one of scvi-tools: its model and columns, and where it kept them its
                  optimizer, its counts of epochs and steps and its history; `epochs` more are trained
    resume        go on from the last good checkpoint of `out`; what is not given is as it was
    profile       write a trace of some steps to `out`/profile and print where their time went
    rank_timeout_s  after which a rank that hangs, or is not heard of, ends the run (see `join_ranks`)
    The same seed, data and settings give the same run, also when it was interrupted and resumed. Started by torchrun
    or `atlasvi launch`, all ranks call this alike; the minibatches, the noise and so the course of the losses are those
    of one process. A group that torchrun has restarted goes on from the last checkpoint by itself.
    Raises OutputError if `out` exists (or, to resume, does not), ColumnError, CountsError, SettingError for bad input,
    TrainingError if the loss or the weights become NaN or infinite, TrainingInterrupted once SIGTERM or SIGINT has come
    and a checkpoint is written, RankError if another rank failed.
    """
    out = Path(out)
    with join_ranks(rank_timeout_s) as ranks, stop_on_signals() as signals, ExitStack() as ours:
        overrides = {
            **(settings or {}),
            **{k: v for k, v in (("epochs", epochs), ("batch_size", batch_size)) if v is not None},
        }
        resolved = resolve_settings(config, overrides)
        keys = SetupKeys(
            batch_key=batch_key,
            labels_key=labels_key,
            size_factor_key=size_factor_key,
            categorical_covariate_keys=tuple(categorical_covariate_keys or ()),
            continuous_covariate_keys=tuple(continuous_covariate_keys or ()),
        )
        asked: dict[str, Any] = {**keys.as_asked(), "seed": seed, "split_column": split_column}
        if seed is not None and seed < 0:
            raise SettingError(f"seed {seed}: give a whole number from 0.")
        like, saved = None, dict[str, Any]()  # how the data was opened before, and the configuration of a run to resume
        if resume := ranks.from_first(lambda: resume or _is_ours(out, ranks), "the start"):
            remove_leftovers(out)
            saved = ranks.from_first(lambda: read_saved(out), "the configuration")
            like = read_data_spec(out, saved)
        elif ranks.is_first:
            if (out / CONFIG).is_file():
                raise OutputError(explain_taken(out))
            check_output_free(out)
        if start is not None and not resume:
            start = start if isinstance(start, TrainedRun) else open_model(start)
            like = start.like
        if isinstance(data, (DataSpec, str, Path)):
            ranks.note("opening the data")
            data = open_cells(data, like=like)
            ours.callback(data.close)
        if resume:
            data = allow_fractions(data, takes_fractions(saved["settings"].get("gene_likelihood")))
            if saved.get("genes"):
                data = select_genes(data, saved["genes"])
            asked, resolved = merge_saved(out, saved, asked, resolved, data)
            if ranks.from_first((out / MODEL).is_file, "the start"):
                if ranks.is_first:
                    say(f"{out}: the run is finished already, so there is nothing to go on with.", error=True)
                return load_run(out)
        asked["seed"] = asked["seed"] or 0
        ranks.note("reading the covariates")
        if resume and "setup" in saved:
            with reading(str(out / CONFIG)):
                setup = Setup.from_saved(saved["setup"])
        elif isinstance(start, TrainedRun):
            data, setup, resolved, first = prepare_start(start, data, keys.as_asked(), resolved)
            asked["genes"] = [str(gene) for gene in data.genes]  # those of the model, whatever else the data has
        else:
            data = allow_fractions(data, resolved.likelihood.takes_fractions)
            setup = learn_setup(data, SetupKeys.from_asked(asked))
        parts = prepare_run(data, out, setup, asked, resolved, device, ranks)
        trainer = Trainer(parts, profile)
        if not resume:
            parts.check_watched()
        if resume:
            ranks.note("reading the checkpoint")
            content = ranks.bytes_from_first(lambda: read_newest_content(out / "checkpoints")[1], "the checkpoint")
            with reading(f"{out / 'checkpoints'}"):
                trainer.restore(load_checkpoint(content))
        elif isinstance(start, TrainedRun):
            with reading(str(start.path)):
                trainer.begin_from(first)
        else:
            parts.measure_library()
        if ranks.is_first and not resume:
            ranks.note("making the run directory")
            with write_folder_aside(out) as scratch:  # with a checkpoint in it, so that there always is a last good one
                (scratch / "result").mkdir()
                write_json(scratch / "result" / CONFIG, parts.config)
                write_checkpoint(scratch / "result" / "checkpoints", 0, trainer.save_state(), resolved.checkpoints_kept)
        return trainer.run(signals)


def _is_ours(out: Path, ranks: Ranks) -> bool:
    """Whether torchrun has restarted the group, and an earlier attempt of this same launch made the run."""
    return ranks.restarted and (out / CONFIG).is_file() and read_saved(out).get("launch") == launch_id()
