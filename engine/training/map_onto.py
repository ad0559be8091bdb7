"""Map new data onto a trained model, into a run of its own: genes aligned, categories added, few parameters trained."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Generator

from atlasvi.engine.distributed.ranks import RANK_TIMEOUT_S, Ranks, join_ranks
from atlasvi.engine.distributed.signals import stop_on_signals
from atlasvi.engine.model.covariates import SetupKeys
from atlasvi.engine.model.model_options import Freezing
from atlasvi.engine.model.run_files import CONFIG
from atlasvi.engine.model.trained_run import MappedFrom, TrainedRun
from atlasvi.engine.scvi_tools.model_directories import open_model
from atlasvi.engine.terminal import say
from atlasvi.engine.training.epoch_estimate import Plan, estimate_training
from atlasvi.engine.training.query_mapping import list_added, map_query
from atlasvi.engine.training.resuming import check_new_run, read_saved
from atlasvi.engine.training.settings import SettingError, resolve_settings
from atlasvi.engine.training.train import train
from atlasvi.loaders.cells.open_cells import CellData, align_genes, enter_cells
from atlasvi.loaders.damage import reading
from atlasvi.loaders.places.object_path import Place, to_place
from atlasvi.loaders.sources.data_spec import DataSpec

SHOWN_CATEGORIES = 5


def map_onto(
    reference: TrainedRun | str | Path,
    data: CellData | DataSpec | str | Path,
    out: str | Path,
    *,
    freezing: Freezing | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    seed: int | None = None,
    split_column: str | None = None,
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    metrics: Sequence[str] | None = None,
    note: str | None = None,
    rank_timeout_s: float = RANK_TIMEOUT_S,
) -> TrainedRun:
    """Map new cells onto a trained model (scArches), into a new run directory `out`.

    reference  a finished run, a model of scvi-tools, or such a model opened (of a minified store: its `run`)
    data       the new cells, as for `train`. Genes of the model that they lack count as zero, with a warning that says
               how many. They have the model's columns of obs; new batches and categories are added to the model
    freezing   which parameters are frozen; None: all but those of new categories and of the decoder's batches, so that
               the latents of the reference's cells stay the same
    resume     continue from the last good checkpoint of `out`; the reference and its options must be as before
    Other arguments, ranks, and what is raised: as in `train`. The run is one like any other, and says what it was
    mapped from. Raises GeneError too if the data names its genes otherwise, such as those of another species.
    """
    folder, freezing = to_place(out), freezing or Freezing()
    with join_ranks(rank_timeout_s) as ranks, stop_on_signals(), ExitStack() as ours:
        if ranks.is_first and not resume and not ranks.restarted:
            check_new_run(folder)  # before the data is read
        data, start = _prepare(ranks, ours, reference, data, folder, freezing, seed, resume)
        return train(
            data,
            folder,
            epochs=epochs,
            batch_size=batch_size,
            device=device,
            seed=seed,
            split_column=split_column,
            config=config,
            settings=settings,
            start=start,
            resume=resume,
            metrics=metrics,
            note=note,
            rank_timeout_s=rank_timeout_s,
        )


def estimate_mapping(
    reference: TrainedRun | str | Path,
    data: CellData | DataSpec | str | Path,
    out: str | Path,
    *,
    freezing: Freezing | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int | None = None,
    split_column: str | None = None,
    resume: bool = False,
    **options: Any,
) -> Plan | None:
    """What `map_onto` with these arguments would do, measured as by `estimate_training`, which takes the options.

    Nothing is written. None if the run is finished already. Raises the errors of `map_onto`, as far as they come before
    its first step.
    """
    folder = to_place(out)
    with join_ranks() as ranks, ExitStack() as ours:
        if not resume:
            check_new_run(folder)
        data, start = _prepare(ranks, ours, reference, data, folder, freezing or Freezing(), seed, resume)
        given = {"seed": seed, "split_column": split_column}
        resolved = resolve_settings(None, settings or {})
        return estimate_training(data, folder, SetupKeys(), resolved, given, start=start, resume=resume, **options)


def _prepare(
    ranks: Ranks,
    ours: ExitStack,
    reference: TrainedRun | str | Path,
    data: CellData | DataSpec | str | Path,
    out: Place,
    freezing: Freezing,
    seed: int | None,
    resume: bool,
) -> tuple[CellData | DataSpec | str | Path, TrainedRun | None]:
    """The new cells, and the model to train on them; None if a run is resumed, which has its own."""
    ranks.note("opening the model and the data")
    if not isinstance(reference, TrainedRun):
        reference = replace(open_model(reference), path=to_place(reference))
    if resume:
        _check_same(out, reference, freezing)
        if isinstance(data, CellData):  # of a path, the run knows that missing genes are zeros
            data = align_genes(data, reference.genes)
        return data, None
    data = align_genes(enter_cells(data, ours, reference.like), reference.genes)
    start = map_query(reference, data, freezing, Generator().manual_seed(seed or 0))
    if ranks.is_first:
        say(_describe(reference, start, data.path))
    return data, replace(start, provenance=reference.provenance)


def _check_same(out: Place, reference: TrainedRun, freezing: Freezing) -> None:
    """Raise SettingError if the run `out` was mapped from another model, or with other parameters frozen."""
    saved = read_saved(out)
    with reading(str(out / CONFIG)):
        origin = MappedFrom.from_saved(saved.get("mapped_from"))
        before = Freezing.model_validate(saved["settings"].get("freezing") or {})
    if origin is None:
        raise SettingError(f"{out}: it is a run that was not mapped: resume it with atlasvi train.")
    if origin.weights_sha256 != (now := reference.weights_sha256):
        raise SettingError(
            f"{out}: it was mapped from {origin}, and {reference.path} has the weights {now}: name the same model."
        )
    sizes = {"n_batches": before.n_batches, "n_categories": before.n_categories}
    if freezing.model_copy(update=sizes) != before:
        raise SettingError(f"{out}: it was mapped with other parameters frozen: resume it with the same options.")


def _describe(reference: TrainedRun, run: TrainedRun, path: str) -> str:
    """A sentence on the categories of the new data."""
    parts = []
    for column, values in list_added(reference.setup, run.setup).items():
        more = len(values) - SHOWN_CATEGORIES
        shown = ", ".join(map(str, values[:SHOWN_CATEGORIES])) + (f" and {more:,} others" if more > 0 else "")
        parts.append(f"{column} {shown}")
    if parts:
        return f"{path}: new to the model: {'; '.join(parts)}."
    of_decoder = (
        ""
        if run.freezing is None or run.freezing.unfrozen
        else (" Only how they are decoded is trained; atlasvi minify encodes these cells without that.")
    )
    return f"{path}: the model knows all batches and categories of these cells.{of_decoder}"
