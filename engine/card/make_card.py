"""Compute a model's card, out of core: one pass over the cells, whose parts are divided among ranks and can resume."""

import dataclasses
import tempfile
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from atlasvi.engine.card.card_figures import judge, make_parts
from atlasvi.engine.card.card_parts import (
    CardJob,
    FinishedParts,
    choose_part_cells,
    list_parts,
    measure_part,
    run_measure_task,
    share_with_cluster,
)
from atlasvi.engine.card.card_split import PART_NAMES, CardSplit, split_cells
from atlasvi.engine.card.integration import measure_integration
from atlasvi.engine.card.kept_latents import CardPosterior
from atlasvi.engine.card.measured_parts import NO_PART, PassOptions
from atlasvi.engine.card.model_card import METRICS, Colouring, LatentPicture, ModelCard, Note
from atlasvi.engine.card.provenance import (
    Stopwatch,
    hash_genes,
    make_provenance,
    read_training_curves,
)
from atlasvi.engine.card.scib_figures import measure_by_scib
from atlasvi.engine.distributed.ranks import RANK_TIMEOUT_S, Ranks, join_ranks
from atlasvi.engine.distributed.signals import stop_on_signals
from atlasvi.engine.minified.kept_posterior import KeptPosterior
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.queries.opened_data import open_question_cells
from atlasvi.engine.queries.question_cells import BATCH_SIZE, CountedCells, MinifiedCells, QuestionCells, need_at_least
from atlasvi.engine.queries.stratified_sample import choose_sample
from atlasvi.engine.queries.umap_layout import N_NEIGHBOURS, import_umap, place_cells
from atlasvi.engine.scvi_tools.model_directories import open_model
from atlasvi.engine.training.fingerprint import fingerprint
from atlasvi.engine.training.run_parts import choose_device
from atlasvi.loaders.cells.coded_columns import CodedColumn, code_column
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.ingestion.ingest import Progress
from atlasvi.loaders.jobs import open_job_folder
from atlasvi.loaders.outputs import name_scratch, write_whole
from atlasvi.loaders.places.object_path import Place, to_place
from atlasvi.loaders.places.staging import write_local_folder
from atlasvi.loaders.sources.data_spec import DataSpec
from atlasvi.loaders.workers import Task, Workers, make_task

SAMPLE_CELLS, LEAST_OF_LABEL = 10_000, 50
PICTURE_CELLS = 5_000
KEPT_DRAWS = 2  # of sampled cells, for Wilcoxon's test and its error
MOMENTS_BYTES = 2**27  # of sums per label, gene and tested draw; the tested draws are fewer than all if they need more
MOST_LABELS = 1_000


class CardFiles(Protocol):
    """What a card's folder holds.

    needs_posterior  whether `write` needs the posterior of each cell
    """

    needs_posterior: bool

    def check(self, run: TrainedRun, cells: QuestionCells) -> None:
        """Raise, before the pass over the cells, if the files can't be written for these cells."""

    def write(self, folder: Path, run: TrainedRun, card: ModelCard, kept: KeptPosterior | None) -> None:
        """On the first rank: write all files of the card, metrics.json among them.

        kept  the posterior of each cell, as the pass over the cells found it, if that was needed; and of minified data
        """


def make_card(
    run: TrainedRun | str | Path,
    data: Any,
    out: str | Path | None = None,
    *,
    labels_key: str | None = None,
    batch_key: str | None = None,
    n_draws: int = 5,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    split: Mapping[str, Any] | None = None,
    device: str = "auto",
    dask: str | None = None,
    rank_timeout_s: float = RANK_TIMEOUT_S,
    files: CardFiles | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> ModelCard:
    """The card of a model: how well counts drawn from it agree with the real ones, and what both are.

    run         a finished run or its directory, or one that scvi-tools saved
    data        the data that it was trained on: a cell store or any source, as a path, a DataSpec or opened, or an
                AnnData; minified data has no counts, so most figures are missing
    out         folder to make, on disk or in a bucket, with metrics.json in it; None: the card is only returned, and
                can't be resumed
    labels_key  column of obs for differential expression and integration; None: the model's labels, if it has some
    batch_key   column of obs for integration; None: the model's
    split       how the cells were split, as a card's provenance has it; None: as the model says
    n_draws     draws of the counts of each cell; errors need at least two, calibration too
    dask        address of a Dask scheduler whose workers draw the counts; they need the same paths for `data` and `out`
    files       writes what else `out` holds: `write_card_folder` gives the files of a hub's repository
    Under torchrun or `atlasvi launch`, call this the same way on all ranks, with `out` where all of them reach it.
    After a kill, Ctrl-C or SIGTERM, the same call continues with the unfinished parts, on any number of ranks.
    Memory: a few bytes per cell (its part and label), and what PartStatistics says; the rest is on disk beside `out`.
    What can't be computed is missing from the card, which has a note on it.
    Raises QueryError if this is not the data of the run, or if it changed since; GeneError, ColumnError if genes or
    columns are missing; OutputError if `out` exists or can't be written.
    """
    need_at_least(1, n_draws=n_draws, batch_size=batch_size)
    if dask is not None and out is None:
        raise SourceError("The workers of a cluster compute a card in a folder that they share: give out=DIR.")
    if dask is not None and not isinstance(data, (DataSpec, str, Path)):
        raise ValueError("each worker of a Dask cluster opens the data itself: pass its path, or a DataSpec")
    watch = Stopwatch()
    with join_ranks(rank_timeout_s) as ranks, stop_on_signals(), ExitStack() as ours:
        ranks.note("opening the model and the data")
        if not isinstance(run, TrainedRun):
            run = open_model(run)
        cells: QuestionCells
        if isinstance(data, (CountedCells, MinifiedCells)):
            cells = data
        else:
            cells = open_question_cells(data, run)
            if isinstance(cells, CountedCells) and cells.source is not data:
                ours.callback(cells.source.close)
        if out is None:
            if ranks.world_size > 1:
                raise SourceError("Several ranks compute a card together in a folder that they share: give out=DIR.")
            out_folder: Place = Path(ours.enter_context(tempfile.TemporaryDirectory(prefix="atlasvi-card-"))) / "card"
        else:
            out_folder = to_place(out)
        ranks.note("reading the split and the labels")
        if files is not None:
            files.check(run, cells)
        keeps_latents = files is not None and files.needs_posterior and isinstance(cells, CountedCells)
        plan = plan_card(run, cells, labels_key, batch_key, n_draws, seed, batch_size, device, split, keeps_latents)
        scratch = name_scratch(out_folder.absolute())
        where = choose_device(device)
        before = run.model.encoder.mean.weight.device
        with ExitStack() as open_until_done:
            if ranks.is_first:
                open_until_done.enter_context(open_job_folder(out_folder, plan.job))
                if CardJob.load(scratch) != plan.job:
                    plan.job.save(scratch)
                (scratch / "result").mkdir(exist_ok=True)
            run.model.to(where).eval()
            if ranks.is_first and len(plan.samples["all"]) > N_NEIGHBOURS:
                # to import what draws the picture takes two seconds of one core: meanwhile counts are drawn
                threading.Thread(target=import_umap).start()
            open_until_done.callback(run.model.to, before)
            if dask is None:
                _measure(scratch, plan, run, cells, ranks, progress)
            elif ranks.is_first:
                share_with_cluster(scratch, run, plan.options)
                _measure_on_cluster(scratch, plan.job, dask, progress)
            ranks.wait_for_all("the other ranks' parts")
            if ranks.is_first:
                progress("computing the figures", 0, 1)
                card = _finish(scratch, plan, run, cells, watch, out)
                if files is None:
                    write_whole(scratch / "result" / METRICS, card.to_json().encode())
                else:
                    kept = cells.kept if isinstance(cells, MinifiedCells) else None
                    if isinstance(cells, CountedCells) and keeps_latents:
                        kept = CardPosterior(scratch, plan.job.part_cells, cells, run)
                    with write_local_folder(scratch / "result") as folder:
                        files.write(folder, run, card, kept)
                progress("computing the figures", 1, 1)
        if out is None:
            return card
        ranks.wait_for_all("the card")
        return ModelCard.from_json((out_folder / METRICS).read_bytes().decode(), str(out_folder / METRICS))


@dataclasses.dataclass
class CardPlan:
    """All that is decided before the pass."""

    job: CardJob
    options: PassOptions
    split: CardSplit
    labels: CodedColumn | None
    batches: CodedColumn | None
    samples: dict[str, np.ndarray]
    notes: list[Note]


def plan_card(
    run: TrainedRun,
    cells: QuestionCells,
    labels_key: str | None,
    batch_key: str | None,
    n_draws: int,
    seed: int,
    batch_size: int,
    device: str,
    known_split: Mapping[str, Any] | None,
    keeps_latents: bool,
) -> CardPlan:
    """What `make_card` decides from its arguments, before the pass over the cells."""
    split = split_cells(run, cells, known_split)
    notes = [*split.notes]
    keys = run.setup.keys
    labels = _read_column(cells, labels_key, keys.labels_key)
    batches = _read_column(cells, batch_key, keys.batch_key)
    label_column, batch_column = labels_key or keys.labels_key, batch_key or keys.batch_key
    if labels is not None and len(labels.categories) > MOST_LABELS:
        n = len(labels.categories)
        notes.append(
            Note("labels", f"Column {label_column!r} has {n:,} values, too many for labels (up to {MOST_LABELS:,}).")
        )
        labels = None
    label_column = label_column if labels is not None else None
    batch_column = batch_column if batches is not None else None
    has_counts = isinstance(cells, CountedCells)
    notes += _explain_missing(run, cells, labels, labels_key or keys.labels_key, n_draws)
    codes = split.codes
    samples = {}
    for name in ("all", *split.sizes):
        inside = codes != NO_PART if name == "all" else codes == PART_NAMES.index(name)
        own = np.zeros(cells.n_cells, np.int8) if labels is None else labels.codes
        own = np.where(inside, own, -1).astype(own.dtype, copy=False)
        if name == "all" or labels is not None:
            samples[name] = choose_sample(own, SAMPLE_CELLS, LEAST_OF_LABEL, seed)
    n_labels = 0 if labels is None or not has_counts else len(labels.categories)
    per_draw = 16 * max(n_labels, 1) * len(run.genes)
    options = PassOptions(
        part_names=PART_NAMES,
        part_codes=codes,
        labels=labels.codes if labels is not None and has_counts else None,
        n_labels=n_labels,
        sampled=np.unique(np.concatenate(list(samples.values()))),
        seed=seed,
        n_draws=n_draws,
        n_tested=int(np.clip(MOMENTS_BYTES // per_draw, min(2, n_draws), n_draws)),
        n_kept=min(KEPT_DRAWS, n_draws),
        batch_size=batch_size,
    )
    spec, known = {"path": DataSpec(cells.path).make_absolute().path}, {"n_cells": cells.n_cells}
    if isinstance(cells, CountedCells):
        spec, known = cells.source.spec.make_absolute().to_record(), fingerprint(cells.data)
    identity = {
        **known,
        "weights_sha256": run.weights_sha256,
        "genes_sha256": hash_genes(run.genes),
        "split": split.how,
    }
    job = CardJob(
        data=spec,
        identity=identity,
        label_column=label_column,
        batch_column=batch_column,
        n_cells=cells.n_cells,
        part_cells=choose_part_cells(cells.n_cells),
        batch_size=batch_size,
        seed=seed,
        n_draws=n_draws,
        device=device,
        keeps_latents=keeps_latents,
    )
    return CardPlan(job, options, split, labels, batches, samples, notes)


def _read_column(cells: QuestionCells, asked: str | None, of_model: str | None) -> CodedColumn | None:
    """A column as categories; that of the model only if the data has it."""
    name = asked if asked is not None else of_model
    if name is None or (asked is None and name not in cells.obs_columns):
        return None
    return code_column(cells, name).drop_unused()


def _explain_missing(
    run: TrainedRun, cells: QuestionCells, labels: CodedColumn | None, column: str | None, n_draws: int
) -> list[Note]:
    """Notes on what can't be computed from this data, whatever its counts."""
    notes = []
    if not isinstance(cells, CountedCells):
        notes.append(
            Note(
                "counts",
                "The data is minified and has no counts: variation, zero fractions, differential expression, "
                "calibration, ELBO and reconstruction are not computed; library sizes, KL and integration are.",
            )
        )
    elif labels is None:
        why = "There are no labels: give --labels-key COLUMN"
        if column is not None:
            why = f"Column {column!r} of labels is not in the data, or has too many values: give --labels-key COLUMN"
        notes.append(Note("differential expression", f"{why}."))
    if n_draws < 2:
        notes.append(Note("errors", "There is one draw: errors over draws and calibration need at least two."))
    if run.model.settings.likelihood.takes_fractions:
        notes.append(
            Note("likelihood", "The model's likelihood is normal: draws are not counts, and figures are of its values.")
        )
    return notes


def _measure(
    scratch: Place, plan: CardPlan, run: TrainedRun, cells: QuestionCells, ranks: Ranks, progress: Progress
) -> None:
    """Measure the unfinished parts; they are divided among ranks."""
    job, parts = plan.job, list_parts(scratch)
    left = ranks.from_first(lambda: parts.list_undone(job.n_parts), "the parts")
    mine = left[len(left) * ranks.rank // ranks.world_size : len(left) * (ranks.rank + 1) // ranks.world_size]
    ranks.note("measuring the first part")
    for part in mine:
        if ranks.is_first:
            done = job.n_parts - len(parts.list_undone(job.n_parts))
            progress("drawing counts", min(done * job.part_cells, job.n_cells), job.n_cells)
        measure_part(scratch, job, part, run.model, cells, plan.options)
        ranks.note("measuring the next part")
    if ranks.is_first:
        progress("drawing counts", job.n_cells, job.n_cells)


def _measure_on_cluster(scratch: Place, job: CardJob, dask: str, progress: Progress) -> None:
    """Measure the unfinished parts on the workers of a Dask cluster."""
    parts = list_parts(scratch)

    def report(task: Task | None = None) -> None:
        done = job.n_parts - len(parts.list_undone(job.n_parts))
        progress("drawing counts", min(done * job.part_cells, job.n_cells), job.n_cells)

    report()
    with Workers(1, dask) as workers:
        left = parts.list_undone(job.n_parts)
        workers.run([make_task(run_measure_task, str(scratch), part) for part in left], report)


def _finish(
    scratch: Place, plan: CardPlan, run: TrainedRun, cells: QuestionCells, watch: Stopwatch, out: str | Path | None
) -> ModelCard:
    job, options = plan.job, plan.options
    finished = FinishedParts(scratch, job, options, len(run.genes), run.model.n_latent)
    names = [] if plan.labels is None else [str(name) for name in plan.labels.categories]
    parts, notes = make_parts(finished, names, plan.samples, options.labels)
    notes = [*plan.notes, *notes]
    rows = np.searchsorted(finished.sampled.rows, plan.samples["all"])
    latents, sample = finished.sampled.latents[rows], plan.samples["all"]
    own = [None if column is None else column.codes[sample] for column in (plan.labels, plan.batches)]
    integration, reasons = measure_integration(latents, *own)
    notes += [Note("integration", reason) for reason in reasons]
    if not reasons and own[0] is not None and own[1] is not None:
        known = (own[0] >= 0) & (own[1] >= 0)
        try:
            counts = finished.sampled.counts[0][rows[known]] if finished.sampled.counts else None
            integration = measure_by_scib(latents[known], own[0][known], own[1][known], counts) or integration
        except Exception as error:  # of a library that is not ours: of few cells it may raise anything
            notes.append(Note("integration", f"scib-metrics failed ({error}), so its figures are missing."))
    return ModelCard(
        provenance=make_provenance(
            run,
            cells,
            hashes=finished.hashes,
            label_column=job.label_column,
            batch_column=job.batch_column,
            split=plan.split.how,
            seed=job.seed,
            n_draws=job.n_draws,
            n_measured=int(np.count_nonzero(options.part_codes != NO_PART)),
            seconds=watch.seconds,
            out=out,
        ),
        parts=parts,
        verdicts=judge(parts),
        integration=integration,
        training_curves=read_training_curves(run),
        picture=_draw(latents, plan, sample),
        notes=tuple(notes),
    )


def _draw(latents: np.ndarray, plan: CardPlan, sample: np.ndarray) -> LatentPicture | None:
    """At most PICTURE_CELLS of the sampled cells in two dimensions."""
    if not len(latents):
        return None
    own = np.zeros(len(sample), np.int8) if plan.labels is None else plan.labels.codes[sample]
    shown = choose_sample(own, PICTURE_CELLS, 1, plan.job.seed)
    method, places = place_cells(latents[shown], plan.job.seed)

    def colour(column: str | None, values: CodedColumn | None) -> Colouring | None:
        if column is None or values is None:
            return None
        codes = values.codes[sample[shown]]
        return Colouring(column, tuple(map(str, values.categories)), tuple(codes.tolist()))

    x, y = (tuple(float(f"{value:.5g}") for value in axis) for axis in places.T)
    label, batch = colour(plan.job.label_column, plan.labels), colour(plan.job.batch_column, plan.batches)
    return LatentPicture(method, x, y, label, batch, plan.job.n_cells)
