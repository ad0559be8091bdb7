"""Second pass of an ingest: sorted buckets -> a cell store.

`encode_bucket` puts the cells of one bucket into their final order and encodes them, independent of other buckets:

    encoded/000005.data, .indices  whole inner chunks of X, one after the other
    encoded/000005.npz             the rest; written last, so that it marks the bucket as done

`assemble_store` joins them into the arrays of the store, encodes the chunks that two buckets share, and writes `obs`.
"""

import io
import itertools
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import pandas as pd
from numba import njit

from atlasvi.loaders.arrays.shard_writing import ChunkEncoder, ShardWriter, create_sharded
from atlasvi.loaders.cells import cell_store
from atlasvi.loaders.identity import mix64
from atlasvi.loaders.ingestion.bucket_sorting import kept_parts, read_bucket
from atlasvi.loaders.ingestion.ingest_job import IngestJob, read_npz
from atlasvi.loaders.jobs import reading_unfinished
from atlasvi.loaders.manifest import read_json, write_json, write_manifest
from atlasvi.loaders.outputs import write_whole
from atlasvi.loaders.places.object_path import Place, to_place
from atlasvi.loaders.places.staging import write_local_file
from atlasvi.loaders.places.zarr_writing import create_group, take_written
from atlasvi.loaders.rows.block_rows import choose_index_dtype, gather_rows
from atlasvi.loaders.tables.store_tables import (
    AppendedArray,
    TableWriter,
    consolidate_metadata,
    create_parents,
    has_masks,
    write_table,
)
from atlasvi.loaders.zarr_warnings import quiet_zarr

ENCODE_CELLS = 2**11
FOLDER, PLAN = "encoded", "store.json"
ARRAYS = ("data", "indices")
ROOT = "zarr.json"  # its content changes once more when the metadata is put together


def plan_store(
    scratch: Place, n_genes: int, largest: int, sources: Mapping[str, int], nnz_starts: np.ndarray, profile: str
) -> dict[str, Any]:
    """The attributes of the store to be made; also writes where each bucket begins, for `encode_bucket`.

    sources  number of rows of each source, by its name in obs['source']
    """
    attributes: dict[str, Any] = {
        "kind": cell_store.KIND,
        "format_version": cell_store.FORMAT_VERSION,
        "n_genes": n_genes,
        "nnz": int(nnz_starts[-1]),
        "largest_count": largest,
        "counts_dtype": np.min_scalar_type(largest).newbyteorder("<").str,
        "indices_dtype": choose_index_dtype(n_genes).newbyteorder("<").str,
        "chunk": cell_store.CHUNK,
        "block_chunks": cell_store.BLOCK_CHUNKS,
        "shard_blocks": cell_store.SHARD_BLOCKS,
        "profile": profile,
        "codecs": cell_store.PROFILES[profile],
        "sources": list(sources),
        "source_sizes": list(sources.values()),
    }
    write_json(scratch / PLAN, {"attributes": attributes, "nnz_starts": nnz_starts.tolist()})
    return attributes


def encode_bucket(scratch: str, bucket: int) -> None:
    """Order and encode the cells of one bucket, unless it is done."""
    place = to_place(scratch)
    folder = place / FOLDER
    if (folder / f"{bucket:06d}.npz").is_file():
        return
    job, plan = IngestJob.load(place), read_json(place / PLAN)
    assert job is not None
    attributes = plan["attributes"]
    found = read_bucket(kept_parts.get(place), lambda part: part.read_counts(bucket))
    keys, row_nnz, indices, counts = (found.pop(name) for name in ("keys", "row_nnz", "indices", "counts"))
    counts = counts.astype(attributes["counts_dtype"], copy=False)
    ends = np.concatenate([[0], np.cumsum(row_nnz, dtype=np.int64)])
    order = np.argsort(mix64(keys, job.seed + 1), kind="stable")
    gene_totals, gene_cells = np.zeros(attributes["n_genes"], np.int64), np.zeros(attributes["n_genes"], np.int64)
    library = np.zeros(len(order), np.int64)
    count_genes(ends, indices, counts, order, gene_totals, gene_cells, library)
    with ExitStack() as files:
        paths = [files.enter_context(write_local_file(folder / f"{bucket:06d}.{name}")) for name in ARRAYS]
        encoders = [
            ChunkEncoder(layout, plan["nnz_starts"][bucket], files.enter_context(open(path, "wb")))
            for layout, path in zip(cell_store.layouts(attributes), paths)
        ]
        for at in range(0, len(order), ENCODE_CELLS):
            _, some_indices, some_counts = gather_rows(ends, indices, counts, order[at : at + ENCODE_CELLS])
            encoders[0].append(some_counts)
            encoders[1].append(some_indices)
    result = {"order": order, "row_nnz": row_nnz[order], "library": library}
    result |= {"gene_totals": gene_totals, "gene_cells": gene_cells}
    for name, encoder in zip(ARRAYS, encoders):
        result |= {f"{name}/head": encoder.head, f"{name}/sizes": np.array(encoder.sizes), f"{name}/tail": encoder.tail}
    content = io.BytesIO()
    np.savez(content, **result)  # type: ignore[arg-type]
    write_whole(folder / f"{bucket:06d}.npz", content.getvalue())


@njit(nogil=True, cache=True)
def count_genes(
    ends: np.ndarray,
    indices: np.ndarray,
    counts: np.ndarray,
    order: np.ndarray,
    gene_totals: np.ndarray,
    gene_cells: np.ndarray,
    library: np.ndarray,
) -> None:
    """Add up the counts of each gene, the cells that have it, and the counts of each cell, cells taken in `order`."""
    for place in range(len(order)):
        total = 0
        for k in range(ends[order[place]], ends[order[place] + 1]):
            gene_totals[indices[k]] += counts[k]
            gene_cells[indices[k]] += 1
            total += counts[k]
        library[place] = total


def assemble_store(
    scratch: Place,
    attributes: dict[str, Any],
    n_cells: int,
    n_buckets: int,
    var: pd.DataFrame,
    dtypes: Mapping[str, object],
    progress: Callable[[int], None],
) -> None:
    """Join the encoded buckets into a cell store, `scratch/result`; calls `progress` with the number of cells done."""
    writer = _StoreWriter(scratch / "result", attributes, n_cells, var, dtypes)
    parts, done = kept_parts.get(scratch), 0
    for bucket in range(n_buckets):
        place = scratch / FOLDER / f"{bucket:06d}"
        with reading_unfinished(place.with_suffix(".npz")):
            result = read_npz(place.with_suffix(".npz"))
        obs = read_bucket(parts, lambda part: part.read_obs(bucket))  # noqa: B023  called here
        with reading_unfinished(place):
            writer.append(place, result, {name: values[result["order"]] for name, values in obs.items()})
        done += len(result["order"])
        progress(done)
    writer.close()


class _StoreWriter:
    """Appends buckets to a new cell store; complete after `close`."""

    def __init__(
        self, path: Place, attributes: dict[str, Any], n_cells: int, var: pd.DataFrame, dtypes: Mapping[str, object]
    ) -> None:
        n_genes, self._path = attributes["n_genes"], path
        self.attributes = {**attributes, "n_cells": n_cells}
        self.root = create_group(path)
        self.root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        csr = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [n_cells, n_genes]}
        matrix = self.root.create_group("X", attributes=csr)
        self._arrays = [
            ShardWriter(create_sharded(matrix, name, attributes["nnz"], layout), layout)
            for name, layout in zip(ARRAYS, cell_store.layouts(attributes))
        ]
        layout = cell_store.INDPTR_LAYOUT
        self._indptr = ShardWriter(create_sharded(matrix, "indptr", n_cells + 1, layout), layout)
        self._indptr.append(np.zeros(1, np.int64))
        self._obs = TableWriter(self.root, "obs", n_cells, dtypes)
        write_table(self.root, "var", var)
        self._written_cells, self._written_nnz = 0, 0
        self._block_starts = [0]
        self._block_elements = attributes["chunk"] * attributes["block_chunks"]
        self._gene_totals, self._gene_cells = np.zeros(n_genes, np.int64), np.zeros(n_genes, np.int64)
        # moments of the log library size for each category of every categorical column, without empty cells
        self._moments = {
            name: np.zeros((len(dtype.categories), 3))
            for name, dtype in self._obs.dtypes.items()
            if isinstance(dtype, pd.CategoricalDtype)
        }

    def append(self, place: Place, result: Mapping[str, np.ndarray], record: dict[str, np.ndarray]) -> None:
        """Append an encoded bucket, whose chunks are in files at `place`, and its `obs/` columns."""
        row_nnz = result["row_nnz"]
        ends = self._written_nnz + np.cumsum(row_nnz, dtype=np.int64)
        starts = ends - row_nnz
        while starts.size and (boundary := len(self._block_starts) * self._block_elements) <= starts[-1]:
            self._block_starts.append(self._written_cells + int(np.searchsorted(starts, boundary)))
        self._indptr.append(ends)
        for name, writer in zip(ARRAYS, self._arrays):
            writer.append(result[f"{name}/head"])
            writer.append_encoded(place.with_suffix(f".{name}"), result[f"{name}/sizes"].tolist())
            writer.append(result[f"{name}/tail"])
        self._gene_cells += result["gene_cells"]
        self._gene_totals += result["gene_totals"]
        self._add_moments(result["library"], record)
        self._obs.append(record)
        self._written_cells += len(row_nnz)
        self._written_nnz += int(row_nnz.sum())

    def _add_moments(self, library: np.ndarray, record: dict[str, np.ndarray]) -> None:
        log_library = np.log(library, where=library > 0, out=np.zeros(len(library)))
        for name, moments in self._moments.items():
            codes = record[f"obs/{name}"]
            if codes.dtype == object:
                known = self._obs.dtypes[name].categories  # type: ignore[attr-defined]
                codes = known.get_indexer(pd.Index(codes, dtype=object))
            use = (codes >= 0) & (library > 0)
            for k, weights in enumerate((None, log_library[use], log_library[use] ** 2)):
                moments[:, k] += np.bincount(codes[use], weights=weights, minlength=len(moments))

    def _write_moments(self) -> None:
        """Write moments by column name; with zarr, since anndata reads names with slashes but refuses to write them."""
        attributes = {"encoding-type": "dict", "encoding-version": "0.1.0"}
        group = self.root.create_group("uns/atlasvi/library", attributes=attributes)
        for name, moments in self._moments.items():
            create_parents(group, name)
            AppendedArray(group, name, len(moments), moments.dtype, (3,)).append(moments)

    def close(self) -> None:
        """Write what was collected, then the attributes that make the folder a cell store."""
        from anndata.io import write_elem

        assert (self._written_cells, self._written_nnz) == (self.attributes["n_cells"], self.attributes["nnz"])
        for writer in itertools.chain(self._arrays, [self._indptr]):
            writer.close()
        n_blocks = max(-(-self._written_nnz // self._block_elements), 1)
        statistics = {
            # empty rows after the last stored count belong to the last block
            "block_starts": np.array([*self._block_starts[:n_blocks], self._written_cells]),
            "gene_totals": self._gene_totals,
            "gene_cells": self._gene_cells,
        }
        if not has_masks(self.root):
            self.attributes["format_version"] = cell_store.VERSION_WITHOUT_MASKS
        with quiet_zarr():
            write_elem(self.root, "uns", {"atlasvi": statistics})
            self._write_moments()
            for name in ("layers", "obsm", "obsp", "varm", "varp"):
                write_elem(self.root, name, {})
            self.root.attrs["atlasvi"] = {**self.attributes, "manifest": True}
        consolidate_metadata(self._path, self.root)
        known = {name: found for name, found in take_written(self.root).items() if name != ROOT}
        known |= {
            f"X/{writer.folder.name}/c/{name}": found
            for writer in itertools.chain(self._arrays, [self._indptr])
            for name, found in writer.files.items()
        }
        write_manifest(self._path, known=known)
