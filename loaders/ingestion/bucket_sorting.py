"""First pass of an ingest: pieces of sources -> cells sorted by bucket, in files that are read bucket by bucket.

A unit is a run of rows of one source. Its cells are held in memory, sorted by bucket, which a hash of each cell's
identity determines, and written as one file (more, if they are denser than estimated), with an index:

    sorted/000007.json      what the unit holds; written last, so that it marks the unit as done
    sorted/000007-0.part     sections, each an array of all cells or counts in the order of the buckets; where each
                             bucket begins in them; and the crc32c of each bucket in each section
"""

import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from atlasvi.loaders.identity import mix64
from atlasvi.loaders.ingestion.ingest_job import IngestJob, open_ingests
from atlasvi.loaders.jobs import Parts, reading_unfinished
from atlasvi.loaders.manifest import read_json
from atlasvi.loaders.outputs import sync_file
from atlasvi.loaders.places.byte_files import read_into
from atlasvi.loaders.rows.block_rows import choose_index_dtype, gather_rows
from atlasvi.loaders.rows.count_checks import check_no_empty_cells, narrowest_unsigned
from atlasvi.loaders.sources.joined import JoinedSources, Piece
from atlasvi.loaders.tables.merged_columns import TEXT
from atlasvi.loaders.tables.records import TextColumns, decode_text, encode_text, obs_to_record

UNIT_NNZ = 2**24  # counts held in memory while they are sorted: 50 to 130 MB
GATHER_CELLS = 2**11
PLAN, FOLDER = "units.json", "sorted"
CELLS, NNZ, CHECKSUMS = "cells", "nnz", "checksums"


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
    plan = read_plan(Path(scratch))
    unit = _Unit(units.folder, number, plan["n_buckets"], job, joined)
    source, start, stop = plan["units"][number]
    for piece in joined.pieces(source, start, stop):
        unit.add(piece)
    units.finish(number, unit.finish())


def list_units(scratch: str | Path) -> Parts:
    """The finished units of a job, and what they hold."""
    return Parts(Path(scratch) / FOLDER, "{:06d}.json")


class _Unit:
    """Cells of a unit, collected piece by piece."""

    def __init__(self, folder: Path, number: int, n_buckets: int, job: IngestJob, joined: JoinedSources) -> None:
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
        self.summary["parts"].append(write_part(self.folder / name, record, indices, counts, self.n_buckets))

    def finish(self) -> dict[str, Any]:
        """Write the remaining cells; returns what the unit holds, to be recorded once it is on disk."""
        if self.pieces:
            self.write()
        sync_file(self.folder)
        return {**self.summary, "text": self.text.to_json()}


def write_part(
    path: Path, record: dict[str, np.ndarray], indices: np.ndarray, counts: np.ndarray, n_buckets: int
) -> dict[str, Any]:
    """Write cells, sorted by bucket, as a part file; returns its index.

    record holds `keys`, whose remainder is the bucket, `row_nnz`, and `obs/` columns, text as objects.
    """
    bucket_of = (record["keys"] % np.uint64(n_buckets)).astype(np.int64)
    order = np.argsort(bucket_of, kind="stable")
    edges = {CELLS: np.searchsorted(bucket_of[order], np.arange(n_buckets + 1))}
    ends = np.concatenate([[0], np.cumsum(record["row_nnz"], dtype=np.int64)])
    edges[NNZ] = np.concatenate([[0], np.cumsum(record["row_nnz"][order], dtype=np.int64)])[edges[CELLS]]
    sections: dict[str, Any] = {}
    with open(path, "wb") as file:

        def begin(name: str, dtype: np.dtype, by: str) -> None:
            sections[name] = [file.tell(), np.dtype(dtype).str, by]

        for name, values in record.items():
            if values.dtype == TEXT:
                lengths, text = encode_text(values[order])
                begin(f"lengths/{name}", lengths.dtype, CELLS)
                file.write(lengths.data)
                begin(f"bytes/{name}", np.dtype(np.uint8), name)
                file.write(text)
                starts = np.concatenate([[0], np.cumsum(np.maximum(lengths, 0), dtype=np.int64)])
                edges[name] = starts[edges[CELLS]]
            else:
                begin(name, values.dtype, CELLS)
                file.write(np.ascontiguousarray(values[order]).view(np.uint8).data)  # datetimes have no buffer
        for name, values in (("indices", indices), ("counts", counts)):
            begin(name, values.dtype, NNZ)
            file.seek(values.nbytes, os.SEEK_CUR)
        done = 0
        for at in range(0, len(order), GATHER_CELLS):
            _, *gathered = gather_rows(ends, indices, counts, order[at : at + GATHER_CELLS])
            for name, values in zip(("indices", "counts"), gathered):
                os.pwrite(file.fileno(), values.data, sections[name][0] + done * values.itemsize)
            done += len(gathered[0])
        file.flush()
        checksums = _hash_buckets(path, sections, edges)
        for name, values in edges.items():
            begin(f"edges/{name}", np.dtype(np.int64), "")
            file.write(values.astype(np.int64).data)
        begin(CHECKSUMS, checksums.dtype, "")
        file.write(checksums.data)
        file.flush()
        os.fsync(file.fileno())
    return {"file": path.name, "sections": sections}


def _hash_buckets(path: Path, sections: dict[str, Any], edges: dict[str, np.ndarray]) -> np.ndarray:
    """uint32 [buckets, sections]: crc32c of each bucket in each section, as it was written."""
    content = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
    checksums = np.empty((len(edges[CELLS]) - 1, len(sections)), np.uint32)
    for k, (offset, dtype, by) in enumerate(sections.values()):
        places = (offset + edges[by] * np.dtype(dtype).itemsize).tolist()
        checksums[:, k] = [google_crc32c.value(content[a:b]) for a, b in itertools.pairwise(places)]
    return checksums


@dataclass
class Part:
    """A part file that is read one bucket at a time; it is not kept open, as there may be thousands."""

    path: Path
    sections: dict[str, list]

    def __post_init__(self) -> None:
        self._edges: dict[str, tuple[int, tuple[int, int]]] = {}
        self._checksums: tuple[int, dict[str, int]] = -1, {}

    @property
    def columns(self) -> list[str]:
        """Names of the `obs/` columns and their masks."""
        names = (name.removeprefix("lengths/") for name in self._hashed)
        return [name for name in names if name.startswith(("obs/", "mask/"))]

    @property
    def _hashed(self) -> list[str]:
        """The sections that have checksums, in their order."""
        return [name for name in self.sections if not name.startswith("edges/") and name != CHECKSUMS]

    def _read_checksums(self, bucket: int) -> dict[str, int]:
        """crc32c of a bucket in each section."""
        if self._checksums[0] != bucket:
            names = self._hashed
            found = self._read(np.empty(len(names), np.uint32), self.sections[CHECKSUMS][0] + 4 * len(names) * bucket)
            self._checksums = bucket, dict(zip(names, found.tolist()))
        return self._checksums[1]

    def span(self, by: str, bucket: int) -> tuple[int, int]:
        """Where a bucket begins and ends, in cells, counts, or bytes of a text column."""
        known, span = self._edges.get(by, (-1, (0, 0)))
        if known != bucket:
            low, high = self._read(np.empty(2, np.int64), self.sections[f"edges/{by}"][0] + 8 * bucket).tolist()
            span = low, high
            self._edges[by] = bucket, span
        return span

    def read(self, name: str, bucket: int) -> np.ndarray:
        """A bucket's values in one section; text columns as objects. Raises SourceError if they are damaged."""
        with reading_unfinished(self.path):
            return self._read_section(name, bucket)

    def _read_section(self, name: str, bucket: int) -> np.ndarray:
        if f"lengths/{name}" in self.sections:
            lengths, raw = (self._read_section(f"{part}/{name}", bucket) for part in ("lengths", "bytes"))
            return decode_text(lengths, raw.tobytes())
        offset, dtype, by = self.sections[name]
        start, stop = self.span(by, bucket)
        values = self._read(np.empty(stop - start, dtype), offset + start * np.dtype(dtype).itemsize)
        if google_crc32c.value(values.view(np.uint8)) != self._read_checksums(bucket)[name]:
            raise ValueError(f"{name} of bucket {bucket} does not match its crc32c")
        return values

    def read_edges(self, by: str, n_buckets: int) -> np.ndarray:
        """Int64 [buckets + 1]: where each bucket begins and the last ends, in cells or counts."""
        with reading_unfinished(self.path):
            return self._read(np.empty(n_buckets + 1, np.int64), self.sections[f"edges/{by}"][0])

    def _read(self, out: np.ndarray, offset: int) -> np.ndarray:
        """Fill `out` with the file's content from `offset` on."""
        with open(self.path, "rb", buffering=0) as file:
            if not read_into(file.fileno(), offset, out):
                raise OSError("it is cut short")
        return out


def read_plan(scratch: Path) -> dict[str, Any]:
    """The plan that `plan_units` returned, as the job stores it. Raises SourceError if it is damaged."""
    with reading_unfinished(scratch / PLAN):
        return read_json(scratch / PLAN)


def read_summaries(scratch: Path) -> list[dict[str, Any]]:
    """What each unit holds, in the order of the units; all must be done."""
    return [list_units(scratch).read(number) for number in range(len(read_plan(scratch)["units"]))]


def open_parts(scratch: Path) -> list[Part]:
    """All part files of the finished units, in the order of the units."""
    described = [part for summary in read_summaries(scratch) for part in summary["parts"]]
    return [Part(scratch / FOLDER / part["file"], part["sections"]) for part in described]


def merge_text(dtypes: dict[str, object], summaries: list[dict[str, Any]]) -> TextColumns:
    """The values of text columns over all units."""
    merged = TextColumns(dtypes)
    for summary in summaries:
        merged.add_json(summary["text"])
    return merged


def count_buckets(parts: list[Part], n_buckets: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 [buckets + 1] each: cells and counts before each bucket."""
    totals = {CELLS: np.zeros(n_buckets, np.int64), NNZ: np.zeros(n_buckets, np.int64)}
    for part in parts:
        for by, total in totals.items():
            edges = part.read_edges(by, n_buckets)
            total += edges[1:] - edges[:-1]
    cells, nnz = (np.concatenate([[0], np.cumsum(total)]) for total in totals.values())
    return cells, nnz


def read_obs(parts: list[Part], bucket: int, order: np.ndarray) -> dict[str, np.ndarray]:
    """The `obs/` columns of a bucket, with its cells in `order`."""
    return {name: np.concatenate([part.read(name, bucket) for part in parts])[order] for name in parts[0].columns}
