"""First pass of an ingest: pieces of sources -> cells sorted by bucket, in files that are read bucket by bucket.

A unit is a run of rows of one source. Its cells are held in memory, sorted by bucket, which a hash of each cell's
identity determines, and written as one file (more, if they are denser than estimated), with an index:

    sorted/000007.json      what the unit holds; written last, so that it marks the unit as done
    sorted/000007-0.part    for each bucket a record of keys and counts and one of obs (see records.py), so that each is
                            read by one request where the file is an object of a store; at the end INDEX of each bucket
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from atlasvi.loaders.identity import mix64
from atlasvi.loaders.ingestion.ingest_job import IngestJob, open_ingests
from atlasvi.loaders.jobs import KeptOpen, Parts, reading_unfinished
from atlasvi.loaders.manifest import read_json
from atlasvi.loaders.outputs import sync_file
from atlasvi.loaders.places.byte_files import ByteFile, open_file
from atlasvi.loaders.places.connections import share_readers
from atlasvi.loaders.places.object_path import Place, to_place
from atlasvi.loaders.places.objects import together
from atlasvi.loaders.places.staging import write_local_file
from atlasvi.loaders.rows.block_rows import choose_index_dtype, gather_rows
from atlasvi.loaders.rows.count_checks import check_no_empty_cells, narrowest_unsigned
from atlasvi.loaders.sources.joined import JoinedSources, Piece
from atlasvi.loaders.tables.records import TextColumns, encode_record, obs_to_record, records_from_bytes

UNIT_NNZ = 2**24  # counts held in memory while they are sorted: 50 to 130 MB
PLAN, FOLDER = "units.json", "sorted"
INDEX = np.dtype([("at", "<i8"), ("sizes", "<u4", 2), ("checksums", "<u4", 2), ("cells", "<u4"), ("nnz", "<u4")])
"""Of a bucket in a part file: where its two records begin, the bytes and the crc32c of each, its cells and counts."""


def plan_units(joined: JoinedSources, n_buckets: int) -> dict[str, Any]:
    """The runs of rows that are sorted at a time: {"n_buckets", "units": [[source, start, stop], ...]}."""
    units = []
    for number, source in enumerate(joined.sources):
        rows = int(np.clip(UNIT_NNZ / max(joined.estimate_nnz(number) / source.n_cells, 1), 1, 2**20))
        units += [[number, start, min(start + rows, source.n_cells)] for start in range(0, source.n_cells, rows)]
    return {"n_buckets": n_buckets, "units": units}


def sort_unit(scratch: str, number: int) -> None:
    """Sort unit `number` of the job in a scratch folder, unless it is done. Raises CountsError on invalid counts."""
    units = list_units(scratch)
    if units.is_done(number):
        return
    job, joined = open_ingests.get(scratch)
    plan = read_plan(to_place(scratch))
    unit = _Unit(units.folder, number, plan["n_buckets"], job, joined)
    source, start, stop = plan["units"][number]
    for piece in joined.pieces(source, start, stop):
        unit.add(piece)
    units.finish(number, unit.finish())


def list_units(scratch: str | Place) -> Parts:
    """The finished units of a job, and what they hold."""
    return Parts(to_place(scratch) / FOLDER, "{:06d}.json")


class _Unit:
    """Cells of a unit, collected piece by piece."""

    def __init__(self, folder: Place, number: int, n_buckets: int, job: IngestJob, joined: JoinedSources) -> None:
        self.folder, self.number, self.n_buckets, self.job, self.joined = folder, number, n_buckets, job, joined
        self.index_dtype = choose_index_dtype(len(joined.var))
        self.text = TextColumns(joined.dtypes)
        self.pieces: list[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]] = []
        self.held = 0
        totals = dict.fromkeys(("cells", "read", "empty", "nnz", "largest", "values", "rounded"), 0)
        self.summary: dict[str, Any] = {"parts": [], **totals}

    def add(self, piece: Piece) -> None:
        """Add the cells of a piece. Raises CountsError on an empty cell if those are refused."""
        row_nnz = np.diff(piece.counts.indptr).astype(np.int32)
        empty_cells = self.job.sources[piece.source]["empty_cells"]
        if empty_cells == "refuse":
            path = self.joined.sources[piece.source].path
            check_no_empty_cells(piece.source_nnz, path, piece.start, self.joined.name_cells(piece.source, piece.start))
        record = {"keys": mix64(piece.keys, self.job.seed), "row_nnz": row_nnz, **obs_to_record(piece.obs)}
        if empty_cells == "drop":
            record = {name: values[row_nnz > 0] for name, values in record.items()}
        self.text.see(record)
        self.pieces.append((record, piece.counts.indices.astype(self.index_dtype), piece.counts.data))
        self.summary["read"] += len(row_nnz)
        self.summary["cells"] += len(record["keys"])
        self.summary["empty"] += int((record["row_nnz"] == 0).sum())
        self.summary["nnz"] += piece.counts.nnz
        self.summary["values"] += piece.n_values
        self.summary["rounded"] += piece.n_rounded
        self.summary["largest"] = max(self.summary["largest"], int(piece.counts.data.max(initial=0)))
        self.held += piece.counts.nnz
        if self.held >= 1.5 * UNIT_NNZ:
            self.write()

    def write(self) -> None:
        """Write the cells collected so far, sorted by bucket."""
        record = {name: np.concatenate([piece[0][name] for piece in self.pieces]) for name in self.pieces[0][0]}
        largest = max(int(piece[2].max(initial=0)) for piece in self.pieces)
        indices = np.concatenate([piece[1] for piece in self.pieces])
        counts = np.concatenate([piece[2] for piece in self.pieces]).astype(narrowest_unsigned(largest), copy=False)
        self.pieces, self.held = [], 0
        name = f"{self.number:06d}-{len(self.summary['parts'])}.part"
        with write_local_file(self.folder / name) as path:
            write_part(path, record, indices, counts, self.n_buckets)
        self.summary["parts"].append(name)

    def finish(self) -> dict[str, Any]:
        """Write the remaining cells; returns what the unit holds, to be recorded once it is on disk."""
        if self.pieces:
            self.write()
        if isinstance(self.folder, Path):
            sync_file(self.folder)
        return {**self.summary, "text": self.text.to_json()}


def write_part(
    path: Path, record: dict[str, np.ndarray], indices: np.ndarray, counts: np.ndarray, n_buckets: int
) -> None:
    """Write cells, sorted by bucket, as a part file.

    record holds `keys`, whose remainder is the bucket, `row_nnz`, and `obs/` columns, text as objects.
    """
    bucket_of = (record["keys"] % np.uint64(n_buckets)).astype(np.int64)
    order = np.argsort(bucket_of, kind="stable")
    edges = np.searchsorted(bucket_of[order], np.arange(n_buckets + 1)).tolist()
    ends = np.concatenate([[0], np.cumsum(record["row_nnz"], dtype=np.int64)])
    index = np.zeros(n_buckets, INDEX)
    with open(path, "wb") as file:
        for row, start, stop in zip(index, edges, edges[1:]):
            cells = order[start:stop]
            _, its_indices, its_counts = gather_rows(ends, indices, counts, cells)
            of_counts = {"keys": record["keys"][cells], "row_nnz": record["row_nnz"][cells]}
            of_counts |= {"indices": its_indices, "counts": its_counts}
            of_obs = {name: values[cells] for name, values in record.items() if name not in of_counts}
            row["at"], row["cells"], row["nnz"] = file.tell(), len(cells), len(its_counts)
            for k, values in enumerate((of_counts, of_obs)):
                checksum = 0
                for piece in encode_record(values):
                    file.write(piece)
                    checksum = google_crc32c.extend(checksum, piece)
                    row["sizes"][k] += len(piece)
                row["checksums"][k] = checksum
        file.write(index.tobytes())
        file.flush()
        os.fsync(file.fileno())


@dataclass
class Part:
    """A part file that is read one bucket at a time; it is not kept open, as there may be thousands."""

    path: Place
    n_buckets: int

    def __post_init__(self) -> None:
        self._remote: ByteFile | None = None  # holds no open file, and saves a request for each that is read

    def read_counts(self, bucket: int) -> dict[str, np.ndarray]:
        """Keys, `row_nnz`, `indices` and `counts` of a bucket's cells. Raises SourceError if they are damaged."""
        return self._read_record(bucket, 0)

    def read_obs(self, bucket: int) -> dict[str, np.ndarray]:
        """The `obs/` columns of a bucket's cells, text as objects. Raises SourceError if they are damaged."""
        return self._read_record(bucket, 1)

    def read_index(self, first: int = 0, stop: int | None = None) -> np.ndarray:
        """INDEX [buckets]: where the buckets [first, stop) are in the file, and how many cells and counts they hold."""
        with reading_unfinished(self.path):
            stop = self.n_buckets if stop is None else stop
            return self._read(np.empty(stop - first, INDEX), (first - self.n_buckets) * INDEX.itemsize)

    def _read_record(self, bucket: int, k: int) -> dict[str, np.ndarray]:
        row = self.read_index(bucket, bucket + 1)[0]
        with reading_unfinished(self.path):
            content = self._read(np.empty(row["sizes"][k], np.uint8), int(row["at"]) + int(row["sizes"][:k].sum()))
            if google_crc32c.value(content) != row["checksums"][k]:
                raise ValueError(f"bucket {bucket} does not match its crc32c")
            return records_from_bytes(content)[0]

    def _read(self, out: np.ndarray, offset: int) -> np.ndarray:
        """Fill `out` with the file's content from `offset` on; a negative one counts from its end."""
        file = self._remote or open_file(self.path)
        if file.is_remote:
            self._remote = file
        try:
            if not file.read_into(offset + file.size if offset < 0 else offset, out):
                raise OSError("it is cut short")
        finally:
            file.close()
        return out


def read_plan(scratch: Place) -> dict[str, Any]:
    """The plan that `plan_units` returned, as the job stores it. Raises SourceError if it is damaged."""
    with reading_unfinished(scratch / PLAN):
        return read_json(scratch / PLAN)


def read_summaries(scratch: Place) -> list[dict[str, Any]]:
    """What each unit holds, in the order of the units; all must be done."""
    return [list_units(scratch).read(number) for number in range(len(read_plan(scratch)["units"]))]


def _open_parts(scratch: Place) -> list[Part]:
    n_buckets = read_plan(scratch)["n_buckets"]
    names = [name for summary in read_summaries(scratch) for name in summary["parts"]]
    return [Part(scratch / FOLDER / name, n_buckets) for name in names]


kept_parts = KeptOpen(_open_parts)
"""All part files of a job whose units are all done, in the order of the units."""


def read_bucket(parts: list[Part], read: Callable[[Part], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What `read` returns of all parts, joined; parts in a bucket are read several at a time."""
    calls = [partial(read, part) for part in parts]
    is_local = isinstance(parts[0].path, Path)
    records = [call() for call in calls] if is_local else together(calls, share_readers())
    return {name: np.concatenate([record[name] for record in records]) for name in records[0]}


def merge_text(dtypes: dict[str, object], summaries: list[dict[str, Any]]) -> TextColumns:
    """The values of text columns over all units."""
    merged = TextColumns(dtypes)
    for summary in summaries:
        merged.add_json(summary["text"])
    return merged


def count_buckets(parts: list[Part]) -> tuple[np.ndarray, np.ndarray]:
    """int64 [buckets + 1] each: cells and counts before each bucket."""
    totals = np.zeros((2, parts[0].n_buckets), np.int64)
    for part in parts:
        index = part.read_index()
        totals += index["cells"], index["nnz"]
    cells, nnz = (np.concatenate([[0], np.cumsum(total)]) for total in totals)
    return cells, nnz
