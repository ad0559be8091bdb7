"""The parts of a card's job: runs of cells that any process can measure; each is written completely and only once.

Files of a part in the job's folder (see loaders/jobs.py): `sums-N.npz` has the sums, and the counts of its sampled
cells; `values-N` three numbers per cell and source, float32 [cells, 1 + draws, 3], so that no process holds
them of all cells; `latents-N`, if the card's files need them, the posterior of each cell (see kept_latents.py).
"""

import dataclasses
import io
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from atlasvi.engine.card.card_split import PART_NAMES
from atlasvi.engine.card.cell_agreement import Slices
from atlasvi.engine.card.kept_latents import LATENTS_FILE, LatentsWriter
from atlasvi.engine.card.measured_parts import (
    CELL_VALUES,
    NO_PART,
    CellHashes,
    Measured,
    PassOptions,
    measure_cells,
)
from atlasvi.engine.card.part_statistics import PartStatistics
from atlasvi.engine.model.run_files import RESULT
from atlasvi.engine.model.trained_run import TrainedRun, load_run
from atlasvi.engine.model.vae import VAE
from atlasvi.engine.queries.opened_data import open_question_cells
from atlasvi.engine.queries.question_cells import QuestionCells
from atlasvi.engine.training.run_parts import choose_device
from atlasvi.loaders.jobs import Job, KeptOpen, Parts, reading_unfinished
from atlasvi.loaders.manifest import check_files, hash_files, write_json
from atlasvi.loaders.outputs import write_whole
from atlasvi.loaders.places.object_path import Place, to_place
from atlasvi.loaders.places.staging import write_local_file
from atlasvi.loaders.sources.data_spec import DataSpec

MOST_PART_CELLS, LEAST_PART_CELLS = 2**16, 2**10
FEWEST_PARTS, MOST_PARTS = 16, 64  # with sums per label and gene, a part may take hundreds of megabytes of disk
SLICE_CELLS = 2**15  # read at a time
RUN, OPTIONS = "run", "options.npz"  # what a worker of a cluster opens, beside the data


@dataclass(frozen=True)
class CardJob(Job):
    """All that determines a card.

    data      how to open the data: the record of a DataSpec, or the path of minified data
    identity  identifies the data, the model and the split
    keeps_latents  whether the parts have the posterior of each cell
    """

    data: dict[str, Any]
    identity: dict[str, Any]
    label_column: str | None
    batch_column: str | None
    n_cells: int
    part_cells: int
    batch_size: int
    seed: int
    n_draws: int
    device: str
    keeps_latents: bool

    @property
    def n_parts(self) -> int:
        """Number of parts."""
        return -(-self.n_cells // self.part_cells)


def choose_part_cells(n_cells: int) -> int:
    """Number of cells in a part: 65,536, fewer for a small atlas, more for a large one."""
    wanted = min(max(n_cells // FEWEST_PARTS, LEAST_PART_CELLS), MOST_PART_CELLS)
    return max(wanted, -(-n_cells // MOST_PARTS), 1)


def list_parts(scratch: Place) -> Parts:
    """The finished parts, with the files that each wrote."""
    return Parts(scratch, "part-{}.json")


def share_with_cluster(scratch: Place, run: TrainedRun, options: PassOptions) -> None:
    """Write what the workers of a cluster need to measure parts, unless an earlier process has."""
    if not (scratch / OPTIONS).is_file():
        (scratch / RUN).mkdir(exist_ok=True)
        run.save(scratch / RUN)
        write_json(scratch / RUN / RESULT, run.result)
        content = io.BytesIO()
        given = {each.name: getattr(options, each.name) for each in dataclasses.fields(options)}
        np.savez(content, **{name: value for name, value in given.items() if value is not None})
        write_whole(scratch / OPTIONS, content.getvalue())


@dataclass
class _Opened:
    """What a worker of a cluster has opened to work on a job."""

    job: CardJob
    model: VAE
    cells: QuestionCells
    options: PassOptions


def _open(scratch: Place) -> _Opened:
    job, run = CardJob.load(scratch), load_run(scratch / RUN)
    assert job is not None
    with np.load(io.BytesIO((scratch / OPTIONS).read_bytes()), allow_pickle=False) as arrays:
        given = {name: arrays[name] for name in arrays}
    options = {name: values if values.ndim else values.item() for name, values in given.items()}
    options["part_names"] = tuple(options["part_names"].tolist())
    run.model.to(choose_device(job.device)).eval()
    return _Opened(
        job,
        run.model,
        open_question_cells(DataSpec.from_record(job.data), run),
        PassOptions(**{"labels": None, **options}),
    )


_open_cards = KeptOpen(_open)
_one_at_a_time = threading.Lock()  # a part uses all cores, and what is open for a job is not for several threads


def run_measure_task(scratch: str, part: int) -> None:
    """Measure a part as a task of a cluster, unless it is done."""
    with _one_at_a_time:
        place = to_place(scratch)
        if not list_parts(place).is_done(part):
            opened = _open_cards.get(place)
            measure_part(place, opened.job, part, opened.model, opened.cells, opened.options)


def measure_part(
    scratch: Place, job: CardJob, part: int, model: VAE, cells: QuestionCells, options: PassOptions
) -> None:
    """Measure the cells of a part and write its files."""
    start, stop = part * job.part_cells, min((part + 1) * job.part_cells, job.n_cells)
    in_part = options.part_codes[start:stop] != NO_PART
    chosen = start + np.flatnonzero(in_part)
    names = [f"sums-{part}.npz", f"values-{part}"]
    with ExitStack() as files:
        file = files.enter_context(open(files.enter_context(write_local_file(scratch / names[1])), "wb"))

        def take_values(here: np.ndarray, values: np.ndarray) -> None:
            file.write(np.ascontiguousarray(values.transpose(2, 0, 1), np.float32).tobytes())

        keep: dict[str, Any] = {}
        if job.keeps_latents:
            names.append(LATENTS_FILE.format(part))
            path = files.enter_context(write_local_file(scratch / names[2]))
            latents = LatentsWriter(files.enter_context(open(path, "wb")), start)
            keep["take_posterior"] = latents.write
            latents.encode(model, cells, start + np.flatnonzero(~in_part), options.batch_size)
        found = measure_cells(model, cells, chosen, options, take_values, **keep) if len(chosen) else Measured()
    content = io.BytesIO()
    np.savez(content, **_to_arrays(found))  # type: ignore[arg-type]
    write_whole(scratch / names[0], content.getvalue())
    list_parts(scratch).finish(part, hash_files(scratch, names))


@dataclass(frozen=True)
class Sampled:
    """The sampled cells of all parts.

    rows     int64, ascending
    counts   float32 CSR [sampled, genes]: real ones, then each kept draw; [] without counts
    latents  float32 [sampled, latent]
    """

    rows: np.ndarray
    counts: list[sparse.csr_matrix]
    latents: np.ndarray


class FinishedParts:
    """What all parts of a job wrote; files are read when they are needed. Raises SourceError if one is damaged."""

    def __init__(self, scratch: Place, job: CardJob, options: PassOptions, n_genes: int, n_latent: int) -> None:
        self._scratch, self._job, self._options, self._n_genes = scratch, job, options, n_genes
        self.parts: dict[str, PartStatistics] = {}
        hashes, rows, counts, latents = np.zeros(3, np.uint64), [], [], [np.zeros((0, n_latent), np.float32)]
        for number in range(job.n_parts):
            files = {name: (size, crc) for name, (size, crc) in list_parts(scratch).read(number).items()}
            with reading_unfinished(scratch):
                check_files(scratch, files, lambda name: True)
                content = io.BytesIO((scratch / f"sums-{number}.npz").read_bytes())
                with np.load(content, allow_pickle=False) as arrays:
                    for name in PART_NAMES:
                        if f"{name}/n_cells" in arrays:
                            self._add(name, {key: arrays[f"{name}/{key}"] for key in _keys_of(arrays, name)})
                    hashes += arrays["hashes"]
                    rows.append(arrays["rows"])
                    if len(arrays["rows"]):
                        latents.append(arrays["latents"])
                        counts.append(list(_read_counts(arrays, n_genes)))
        self.hashes = CellHashes(*hashes.tolist())
        sources = [sparse.vstack(each, format="csr") for each in zip(*counts)]
        self.sampled = Sampled(np.concatenate([np.zeros(0, np.int64), *rows]), sources, np.concatenate(latents))

    def _add(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        options = self._options
        if name not in self.parts:
            self.parts[name] = PartStatistics(self._n_genes, options.n_draws, options.n_labels, options.n_tested)
        self.parts[name].add_arrays(arrays)

    def slice_values(self, measure: str, part: int | None) -> Slices:
        """Passes over one of `CELL_VALUES` of the cells of a part, by its code; None: of all parts."""
        job, codes, column = self._job, self._options.part_codes, CELL_VALUES.index(measure)
        shape = 1 + job.n_draws, len(CELL_VALUES)

        def read() -> Iterator[np.ndarray]:
            for number in range(job.n_parts):
                own = codes[number * job.part_cells : (number + 1) * job.part_cells]
                own = own[own != NO_PART]
                with (self._scratch / f"values-{number}").open("rb") as file:
                    for start in range(0, len(own), SLICE_CELLS):
                        here = own[start : start + SLICE_CELLS]
                        values = np.frombuffer(file.read(4 * len(here) * shape[0] * shape[1]), np.float32)
                        chosen = values.reshape(len(here), *shape)[:, :, column].T
                        yield np.ascontiguousarray(chosen if part is None else chosen[:, here == part])

        return read


def _to_arrays(found: Measured) -> dict[str, np.ndarray]:
    arrays = {"hashes": found.hashes, "rows": np.concatenate([np.zeros(0, np.int64), *found.rows])}
    for name, part in found.parts.items():
        arrays.update({f"{name}/{key}": values for key, values in part.to_arrays().items()})
    if found.rows:
        arrays["latents"] = np.concatenate(found.latents)
    for source, matrices in enumerate(zip(*found.counts)):
        whole = sparse.vstack(matrices, format="csr")
        for key in ("data", "indices", "indptr"):
            arrays[f"counts-{source}/{key}"] = getattr(whole, key)
    return arrays


def _keys_of(arrays: Any, name: str) -> list[str]:
    return [key.removeprefix(f"{name}/") for key in arrays if key.startswith(f"{name}/")]


def _read_counts(arrays: Any, n_genes: int) -> Iterator[sparse.csr_matrix]:
    source = 0
    while f"counts-{source}/data" in arrays:
        values = [arrays[f"counts-{source}/{key}"] for key in ("data", "indices", "indptr")]
        yield sparse.csr_matrix(tuple(values), (len(values[2]) - 1, n_genes))
        source += 1
