"""Minify: encode a whole atlas, out of core, and keep the posterior instead of the counts."""

import functools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from atlasvi.engine.distributed.launch import launch_prefix
from atlasvi.engine.distributed.ranks import RANK_TIMEOUT_S, Ranks, join_ranks
from atlasvi.engine.distributed.signals import stop_on_signals
from atlasvi.engine.minified import minify_parts
from atlasvi.engine.minified.minified_store import LIBRARY, Latents, create_minified, finish_minified
from atlasvi.engine.minified.minify_parts import ENCODED, ORDERED, MinifyJob, Opened
from atlasvi.engine.model.run_files import RESULT
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.provenance import make_provenance
from atlasvi.engine.scvi_tools.model_directories import open_model
from atlasvi.engine.training.fingerprint import fingerprint
from atlasvi.loaders.cells.open_cells import CellData, enter_cells, hash_counts, select_genes
from atlasvi.loaders.ingestion.ingest import Progress
from atlasvi.loaders.jobs import open_job_folder, reading_unfinished
from atlasvi.loaders.manifest import hash_files, write_json
from atlasvi.loaders.outputs import name_scratch
from atlasvi.loaders.places.object_path import Place, to_place
from atlasvi.loaders.places.staging import write_local_folder
from atlasvi.loaders.sources.data_spec import DataSpec
from atlasvi.loaders.workers import Workers, make_task


@dataclass(frozen=True)
class MinifyReport:
    """The result of `minify`."""

    out: str
    n_cells: int
    n_latent: int


def minify(
    run: TrainedRun | str | Path,
    data: CellData | DataSpec | str | Path,
    out: str | Path,
    *,
    source_order: bool = False,
    batch_size: int = 1024,
    device: str = "auto",
    dask: str | None = None,
    latents: Latents = "float32",
    rank_timeout_s: float = RANK_TIMEOUT_S,
    progress: Progress = lambda stage, done, total: None,
) -> MinifyReport:
    """Write the posterior of every cell of `data` under the model of `run` to a new minified store at `out`.

    run           a finished run or its directory, or one that scvi-tools saved
    data          a cell store or any source, as a path with options (PATH::layer=counts), as a DataSpec, or opened; it
                  must have all genes of the model (others are ignored). The defaults of options are those of the
                  run's data
    source_order  True: cells in the order of their sources; False: in the order of the store
    dask          address of a Dask scheduler whose workers encode; they need the same paths for `data` and `out`, which
                  may be addresses in buckets
    latents       float16 halves the size of the store; docs/minified-store.md has what it changes
    Under torchrun or `atlasvi launch`, call this the same way on all ranks; each writes its own parts of the store.
    After a kill, Ctrl-C or SIGTERM, the same call continues with the unfinished parts, on any number of ranks.
    Memory does not grow with the number of cells.
    Raises GeneError, ColumnError if genes or columns that the model uses are missing, or if a category, such as a
    batch, was not in the training data; OutputError if `out` exists or can't be written, or if a latent is too large
    for float16.
    """
    with join_ranks(rank_timeout_s) as ranks, stop_on_signals(), ExitStack() as ours:
        ranks.note("opening the model and the data")
        if not isinstance(run, TrainedRun):
            run = open_model(run)
        if dask is not None and not isinstance(data, (DataSpec, str, Path)):
            raise ValueError("each worker of a Dask cluster opens the data itself: pass its path, or a DataSpec")
        data = enter_cells(data, ours, run.like)
        opened = plan_minify(
            run, data, source_order=source_order, batch_size=batch_size, device=device, latents=latents
        )
        data, job = opened.data, opened.job
        with ExitStack() as open_until_done:
            scratch = name_scratch(to_place(out).absolute())
            if ranks.is_first:
                open_until_done.enter_context(open_job_folder(out, job))
                if MinifyJob.load(scratch) != job:
                    prepare_store(scratch, opened)
            open_until_done.callback(minify_parts.forget, scratch)
            minify_parts.open_minifies.keep(scratch, opened)
            with Workers(1, dask) as workers:
                _work(scratch, job, ranks, workers, dask is not None, progress)
            ranks.wait_for_all("the other ranks' parts")
            if ranks.is_first:
                _finish(scratch, opened, progress)
    return MinifyReport(str(out), data.n_cells, run.model.n_latent)


def plan_minify(
    run: TrainedRun, data: CellData, *, source_order: bool, batch_size: int, device: str, latents: Latents
) -> Opened:
    """The job of `minify` with these arguments, and what it works on. Raises GeneError, ColumnError."""
    data = select_genes(data, run.genes)
    job = MinifyJob(
        data=data.spec.make_absolute().to_record(),
        identity={**fingerprint(data), "weights_sha256": run.weights_sha256},
        n_cells=data.n_cells,
        part_cells=minify_parts.choose_part_cells(data.n_cells, batch_size),
        batch_size=batch_size,
        source_order=source_order,
        device=device,
        latents=latents,
    )
    return Opened(job, run, data, run.setup.read_codes(data))


def prepare_store(scratch: Place, opened: Opened) -> None:
    """Make the store without cells, and the files that every process needs; others may start once the job is there."""
    run, data, job = opened.run, opened.data, opened.job
    dtypes = {name: dtype for name, dtype in data.read_obs(0, 0).dtypes.items() if name != LIBRARY}
    weights = {name: tensor.numpy() for name, tensor in run.model.state_dict().items()}
    sizes = data.n_cells, run.model.n_latent
    rows, layer = job.part_cells, run.setup.layer
    with write_local_folder(scratch / minify_parts.RESULT) as folder:
        create_minified(folder, *sizes, data.var, dtypes, weights, rows, layer, job.latents)
        created = hash_files(folder)
    minify_parts.list_created(scratch).finish(0, created)
    for name in (minify_parts.DONE, minify_parts.PIECES, minify_parts.RUN):
        (scratch / name).mkdir()
    run.save(scratch / minify_parts.RUN)
    write_json(scratch / minify_parts.RUN / RESULT, run.result)
    job.save(scratch)


def _work(scratch: Place, job: MinifyJob, ranks: Ranks, workers: Workers, on_cluster: bool, progress: Progress) -> None:
    """Encode the unfinished parts and, if requested, order them; the parts are divided among ranks or a cluster."""
    for stage in (ENCODED, ORDERED) if job.source_order else (ENCODED,):
        doing = "encoding" if stage == ENCODED else "ordering"
        list_left = functools.partial(minify_parts.list_parts(scratch, stage).list_undone, job.n_parts)
        left = ranks.from_first(list_left, "the parts")

        def report_progress(doing: str = doing, list_left: Callable[[], list[int]] = list_left) -> None:
            if ranks.is_first:
                progress(doing, min((job.n_parts - len(list_left())) * job.part_cells, job.n_cells), job.n_cells)
            ranks.note(f"{doing} the next part")

        if on_cluster:
            per_task = minify_parts.TASK_PARTS if stage == ENCODED else 1
            function = minify_parts.run_encode_task if stage == ENCODED else minify_parts.run_order_task
            tasks = [
                make_task(function, str(scratch), number) for number in sorted({part // per_task for part in left})
            ]
            workers.run(tasks, lambda task: report_progress())
            continue
        mine = left[len(left) * ranks.rank // ranks.world_size : len(left) * (ranks.rank + 1) // ranks.world_size]
        ranks.note(f"{doing} the first part")
        if stage == ENCODED:
            for _ in minify_parts.encode_parts(str(scratch), mine):
                report_progress()
            ranks.wait_for_all("the other ranks' parts")  # ordering needs all pieces of a chunk
        else:
            for part in mine:
                minify_parts.run_order_task(str(scratch), part)
                report_progress()


def _finish(scratch: Place, opened: Opened, progress: Progress) -> None:
    run, data, job = opened.run, opened.data, opened.job
    model = {
        "model": run.model_settings,
        "setup": run.setup.to_saved(),
        "order": "source" if job.source_order else "as trained",
        "data": data.spec.to_record(),
        "provenance": make_provenance(launch_prefix(), counts=hash_counts(data), of=run.provenance).to_record(),
        **({} if run.mapped_from is None else {"mapped_from": vars(run.mapped_from)}),
    }
    written = minify_parts.read_written(scratch, ORDERED if job.source_order else ENCODED, job.n_parts)
    result = scratch / minify_parts.RESULT
    with reading_unfinished(result):
        finish_minified(
            result,
            data.n_cells,
            len(data.var),
            run.model.n_latent,
            model,
            written,
            lambda done: progress("indexing names", done, data.n_cells),
        )
