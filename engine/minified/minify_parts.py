"""The parts of a minify: runs of cells that any process can encode; each is written completely and only once (jobs.py).

A part has as many cells as a file of the store's arrays, so that processes write different files of one store. For the
order of the sources there are two passes: the first writes each part's cells as pieces, one per chunk that they belong
to, and the second gathers the pieces of each chunk.
"""

import functools
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import google_crc32c
import numpy as np
import torch
import zarr

from atlasvi.engine.minified.minified_store import LIBRARY, Latents, write_cells
from atlasvi.engine.model.trained_run import TrainedRun, load_run
from atlasvi.loaders.batches.device_feeder import DeviceFeeder
from atlasvi.loaders.batches.loader import BatchLoader
from atlasvi.loaders.cells.open_cells import CellData, open_cells, select_genes
from atlasvi.loaders.jobs import Job, KeptOpen, Parts, reading_unfinished
from atlasvi.loaders.manifest import Files
from atlasvi.loaders.outputs import write_whole
from atlasvi.loaders.places.byte_files import open_file
from atlasvi.loaders.places.object_path import ObjectPath, Place, to_place
from atlasvi.loaders.places.zarr_writing import open_to_write
from atlasvi.loaders.sources.data_spec import DataSpec
from atlasvi.loaders.tables.records import obs_to_record, record_to_bytes, records_from_bytes

RUN, RESULT, DONE, PIECES = "run", "result", "done", "pieces"
ENCODED, ORDERED = "encoded", "ordered"
MOST_PART_CELLS, LEAST_PART_CELLS = 2**16, 2**10
FEWEST_PARTS = 16  # for a small atlas too, so that several processes have work
TASK_PARTS = 4  # parts per task of a cluster: larger tasks, because each reads a little beyond its end


@dataclass(frozen=True)
class MinifyJob(Job):
    """All that determines the result of a minify.

    data        how to open the data: the record of a DataSpec
    identity    identifies the data and the model
    part_cells  number of cells in a part, a multiple of batch_size; the last part may have fewer
    """

    data: dict[str, str]
    identity: dict[str, Any]
    n_cells: int
    part_cells: int
    batch_size: int
    source_order: bool
    device: str
    latents: Latents

    @property
    def n_parts(self) -> int:
        """Number of parts, which is the number of chunks of the store."""
        return -(-self.n_cells // self.part_cells)


def choose_part_cells(n_cells: int, batch_size: int) -> int:
    """Number of cells in a part: about 65,536, fewer for a small atlas."""
    wanted = min(max(n_cells // FEWEST_PARTS, LEAST_PART_CELLS), MOST_PART_CELLS)
    return batch_size * max(round(wanted / batch_size), 1)


@dataclass
class Opened:
    """What a process has opened to work on a job."""

    job: MinifyJob
    run: TrainedRun
    data: CellData
    codes: dict[str, np.ndarray]
    result: zarr.Group | None = None  # in a bucket, once the first part is written


def _open(scratch: Place) -> Opened:
    job, run = MinifyJob.load(scratch), load_run(scratch / RUN)
    assert job is not None
    data = select_genes(open_cells(DataSpec.from_record(job.data)), run.genes)
    return Opened(job, run, data, run.setup.read_codes(data))


open_minifies = KeptOpen(_open)
"""The model and the data of a scratch folder's job, open in this process."""


def forget(scratch: Place) -> None:
    """Close the job in this process."""
    open_minifies.forget(scratch)
    _read_index.cache_clear()


def list_parts(scratch: str | Place, stage: str) -> Parts:
    """The finished parts of a stage, with the files that each wrote."""
    return Parts(to_place(scratch) / DONE, f"{stage}-{{}}")


def list_created(scratch: Place) -> Parts:
    """The files of the store before the first cell, as one part."""
    return Parts(scratch, "created.json")


def run_encode_task(scratch: str, number: int) -> None:
    """Encode TASK_PARTS parts, except those that are finished."""
    n_parts = open_minifies.get(scratch).job.n_parts
    undone = list_parts(scratch, ENCODED).list_undone(n_parts)
    for _ in encode_parts(scratch, [part for part in undone if part // TASK_PARTS == number]):
        pass


def encode_parts(scratch: str, parts: list[int]) -> Iterator[int]:
    """Encode parts and write them; yields a part's number once it is on disk. Consecutive parts are read together."""
    opened, folder = open_minifies.get(scratch), to_place(scratch)
    job = opened.job
    where = "cuda" if job.device == "auto" and torch.cuda.is_available() else job.device.replace("auto", "cpu")
    opened.run.model.to(where).eval()
    try:
        for first, stop in _join_neighbours(parts):
            for part, record in zip(range(first, stop), _encode(opened, first, stop, torch.device(where))):
                written: Files = {}
                if job.source_order:
                    _write_pieces(folder / PIECES / str(part), record, opened.data.source_sizes, job.part_cells)
                else:
                    written = _write(opened, folder, part * job.part_cells, record)
                list_parts(scratch, ENCODED).finish(part, written)
                yield part
    finally:
        opened.run.model.cpu()


def _write(opened: Opened, folder: Place, start: int, record: dict[str, np.ndarray]) -> Files:
    """Write the cells of a part into the store."""
    if opened.result is None and isinstance(folder, ObjectPath):
        opened.result = open_to_write(folder / RESULT)
    return write_cells(folder / RESULT, start, record, opened.result)


def run_order_task(scratch: str, part: int) -> None:
    """Gather the cells of a chunk of the store, in the order of the sources, from the pieces of all parts."""
    opened, folder = open_minifies.get(scratch), to_place(scratch)
    job = opened.job
    index = _read_index(scratch, job.n_parts)
    begins = index[:, 1, :].sum(0)  # cells of all parts before each bucket
    start, stop = part * job.part_cells, min((part + 1) * job.part_cells, job.n_cells)
    first = int(np.searchsorted(begins, start, side="right")) - 1
    last = int(np.searchsorted(begins, stop, side="left"))
    records = []
    for number in range(job.n_parts):
        low, high = (int(index[number, 0, bucket]) for bucket in (first, last))
        if high > low:
            path = folder / PIECES / str(number)
            with reading_unfinished(path), closing(open_file(path)) as file:
                content = np.empty(high - low, np.uint8)
                if not file.read_into(low, content):
                    raise OSError("it is cut short")
                for bucket in range(first, last):
                    begin, end = index[number, 0, bucket : bucket + 2] - low
                    if google_crc32c.value(content[begin:end]) != index[number, 2, bucket + 1]:
                        raise ValueError("it does not match its crc32c")
                records += records_from_bytes(content)
    record = {name: np.concatenate([each[name] for each in records]) for name in records[0]}
    order = np.argsort(record.pop("place"))[start - int(begins[first]) :][: stop - start]
    written = _write(opened, folder, start, {name: values[order] for name, values in record.items()})
    list_parts(scratch, ORDERED).finish(part, written)


def read_written(scratch: Place, stage: str, n_parts: int) -> Files:
    """The first files of the store, and those that all parts wrote."""
    files: Files = {}
    parts = list_parts(scratch, stage)
    for written in (list_created(scratch).read(0), *map(parts.read, range(n_parts))):
        files.update({name: (size, checksum) for name, (size, checksum) in written.items()})
    return files


def _encode(opened: Opened, first: int, stop: int, device: torch.device) -> Iterator[dict[str, np.ndarray]]:
    """Records of parts [first, stop): qzm, qzv and the columns of obs, with cells in the order of the data."""
    job, data, model = opened.job, opened.data, opened.run.model
    columns = [name for name in data.read_obs(0, 0).columns if name != LIBRARY]
    loader = BatchLoader(data, job.batch_size, seed=0, codes=opened.codes, shuffle=False)
    loader.set_epoch(0, first * job.part_cells // job.batch_size)
    with torch.inference_mode(), closing(iter(DeviceFeeder(loader, device))) as batches:  # type: ignore[type-var]
        for part in range(first, stop):
            start, end = part * job.part_cells, min((part + 1) * job.part_cells, data.n_cells)
            encoded = []
            for _ in range(-(-(end - start) // job.batch_size)):
                batch = next(batches)
                encoded.append([values.cpu().numpy() for values in (*model.encode(batch), batch.library)])
            qzm, qzv, library = (np.concatenate(values) for values in zip(*encoded))
            obs = obs_to_record(data.read_obs(start, end)[columns])
            yield {"qzm": qzm, "qzv": qzv, f"obs/{LIBRARY}": library, **obs}


def _join_neighbours(parts: list[int]) -> Iterator[tuple[int, int]]:
    """Runs [first, stop) of consecutive numbers."""
    edges = [0, *(at for at, (a, b) in enumerate(pairwise(parts), 1) if b != a + 1), len(parts)]
    for a, b in pairwise(edges):
        if b > a:
            yield parts[a], parts[b - 1] + 1


def _write_pieces(path: Place, record: dict[str, np.ndarray], source_sizes: list[int], bucket_cells: int) -> None:
    """Write a part's cells as a record for each bucket of positions among the sources, and an index of the records."""
    offsets = np.cumsum([0, *source_sizes])
    place = offsets[record["obs/source"]] + record["obs/source_row"]
    order = np.argsort(place)
    record = {name: values[order] for name, values in {**record, "place": place}.items()}
    n_buckets = -(-int(offsets[-1]) // bucket_cells)
    cuts = np.searchsorted(record["place"], np.arange(n_buckets + 1) * bucket_cells)
    pieces = [
        record_to_bytes({name: values[a:b] for name, values in record.items()}) if b > a else b""
        for a, b in pairwise(cuts.tolist())
    ]
    checksums = [0, *map(google_crc32c.value, pieces)]
    index = np.stack([np.cumsum([0, *map(len, pieces)]), cuts, checksums]).astype("<i8").tobytes()
    write_whole(path.parent / f"{path.name}.index", index + google_crc32c.value(index).to_bytes(8, "little"))
    write_whole(path, b"".join(pieces))


@functools.lru_cache(1)
def _read_index(scratch: str, n_parts: int) -> np.ndarray:
    """int64 [parts, 3, buckets + 1]: bytes, and cells, before each bucket of a part; crc32c of the previous bucket."""
    found = []
    for path in (to_place(scratch) / PIECES / f"{part}.index" for part in range(n_parts)):
        with reading_unfinished(path):
            content = np.frombuffer(path.read_bytes(), "<i8")
            if google_crc32c.value(content[:-1].tobytes()) != content[-1]:
                raise ValueError("it does not match its crc32c")
            found.append(content[:-1].reshape(3, -1))
    return np.stack(found)
