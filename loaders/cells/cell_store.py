"""The cell store: shuffled counts as a plain AnnData Zarr v3, read in blocks straight from its shards.

    STORE/                   attributes `atlasvi`: kind, format version, sizes, how X is split into chunks
      X/                     CSR: data (narrowest unsigned), indices (uint16 if genes allow, as differences), indptr
      obs/                   all columns of the sources, `source` and `source_row`
      var/                   gene names and columns
      uns/atlasvi/           block_starts [blocks + 1], gene_totals [genes], gene_cells [genes],
                             library/<obs column> [categories, 3]: cells, sum and sum of squares of log library
      manifest.json          bytes and checksum of every file, written last; stores of atlasvi 0.1 to 0.3 have none

A block is a run of 32 inner chunks and the rows that start in it; only its last row reaches into the next chunk, so
an epoch decodes about 1/32 of the chunks twice. Each inner chunk has its own crc32c, which is finer than a checksum for
each block and is verified by every Zarr reader.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from atlasvi.loaders.arrays.array_checks import check_group_codecs
from atlasvi.loaders.arrays.shards import Layout
from atlasvi.loaders.cells.block_readers import open_rows
from atlasvi.loaders.cells.store_checks import (
    MOST_BLOCK,
    MOST_CHUNK,
    check_attributes,
    check_block_starts,
    check_layout,
    check_lengths,
    check_written,
    name_missing_chunks,
)
from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import DamagedChunkError, SourceError
from atlasvi.loaders.identity import cell_keys
from atlasvi.loaders.manifest import read_manifest
from atlasvi.loaders.outputs import remove_leftovers
from atlasvi.loaders.places.addresses import restore_address
from atlasvi.loaders.places.object_path import ObjectPath, Place, open_folder
from atlasvi.loaders.places.zarr_stores import open_group
from atlasvi.loaders.rows.block_rows import Rows
from atlasvi.loaders.sources.data_spec import DataSpec
from atlasvi.loaders.store_files import KIND, check_manifest, check_version, read_attributes
from atlasvi.loaders.tables.anndata_tables import read_table
from atlasvi.loaders.tables.store_tables import TableReader, read_arrays
from atlasvi.loaders.zarr_warnings import quiet_zarr

log = logging.getLogger(__name__)

FORMAT_VERSION = 3
VERSION_WITHOUT_MASKS = 2  # of a store whose tables have no nullable columns: older readers can read it
CHUNK = 2**17  # elements: large enough that decoding, not Python, takes the time
BLOCK_CHUNKS = 32  # one more is read for the end of the last cell: an epoch decodes 3% twice
SHARD_BLOCKS = 8
INDPTR_LAYOUT = Layout(np.dtype("<i8"), chunk=2**12, shard=2**20, delta=True, compressor="zstd")
GROUP_BLOCKS = 2
ATTRIBUTES: dict[str, type] = {
    **dict.fromkeys(("n_cells", "n_genes", "nnz", "largest_count", "chunk", "block_chunks", "shard_blocks"), int),
    "counts_dtype": str,
    "indices_dtype": str,
    "codecs": dict,
    "profile": str,
    "sources": list,
    "source_sizes": list,
}
PROFILES: dict[str, dict[str, tuple[str, int]]] = {
    # compressor and level of counts and of index differences; times and sizes are for one stored count, one thread
    # counts: 0.43 ns, 3.6 bits (plain lz4, which searches less for matches: 0.65 ns, 4.9 bits); indices: 0.1 ns, 8.1
    "fast": {"counts": ("lz4hc", 1), "indices": ("lz4", 5)},
    # counts: 1.1 ns, 2.4 bits; indices: 0.7 ns, 5.6 bits
    "small": {"counts": ("zstd", 2), "indices": ("zstd", 1)},
}


def layouts(attributes: dict) -> tuple[Layout, Layout]:
    """How `data` and `indices` of X are split and encoded, from the attributes of the store."""
    chunk = attributes["chunk"]
    shard = chunk * attributes["block_chunks"] * attributes["shard_blocks"]
    counts, indices = attributes["codecs"]["counts"], attributes["codecs"]["indices"]
    return (
        Layout(np.dtype(attributes["counts_dtype"]), chunk, shard, False, *counts),
        Layout(np.dtype(attributes["indices_dtype"]), chunk, shard, True, *indices),
    )


class CellStore:
    """A finished cell store, opened for reading, as `Cells`."""

    layer: str | None = None  # always: the counts are in X

    def __init__(self, path: str | Path | ObjectPath, spec: DataSpec | None = None) -> None:
        self.path = restore_address(path)
        self.spec = spec or DataSpec(self.path)
        if given := set(self.spec.options) & {"layer", "gene_column", "measurement", "gene_versions"}:
            raise SourceError(
                f"{path}: a cell store holds the counts and genes that ingest chose, so {sorted(given)[0]} can't be "
                "chosen again: leave it out, or ingest the sources with it."
            )
        place = self._place = open_folder(path, self.spec.storage)
        if isinstance(place, Path):
            remove_leftovers(place)
        attributes = read_attributes(place)
        if attributes is None or attributes.get("kind") != KIND:
            raise SourceError(f"{path} is not a cell store (make one with: atlasvi ingest SRC... --out STORE).")
        check_attributes(attributes, path, {"format_version": int})
        check_version(str(path), KIND, attributes, FORMAT_VERSION)
        if attributes["format_version"] < VERSION_WITHOUT_MASKS:
            raise SourceError(
                f"{path}: this cell store was made by an earlier draft of atlasvi: ingest its sources again."
            )
        check_attributes(attributes, path, ATTRIBUTES)
        self.attributes = attributes
        with reading(self.path), quiet_zarr():
            self._open(place)

    def _open(self, path: Place) -> None:
        has_manifest = check_manifest(path, self.attributes)
        root = cast(Any, open_group(path))
        check_group_codecs(root)
        self.n_cells: int = self.attributes["n_cells"]
        self.nnz: int = self.attributes["nnz"]
        self.source_sizes: list[int] = self.attributes["source_sizes"]
        self.var = read_table(self.path, "var", root["var"])
        self._obs = TableReader(root["obs"], self.path)
        self.obs_columns = self._obs.columns
        self.statistics = read_arrays(root["uns/atlasvi"])
        self.block_starts: np.ndarray = self.statistics["block_starts"]
        self.group_blocks = GROUP_BLOCKS
        self.mixing = (
            "shuffled as a whole when the store was written, so neighbouring cells are unrelated; "
            f"{GROUP_BLOCKS} blocks of them are mixed at a time"
        )
        data, indices = layouts(self.attributes)
        block_elements = data.chunk * self.attributes["block_chunks"]
        if not (0 < data.chunk <= MOST_CHUNK and 0 < block_elements <= MOST_BLOCK):
            raise SourceError(f"{path}: its blocks of {block_elements:,} counts are damaged: copy it again.")
        if len(self.var) != self.attributes["n_genes"]:
            raise SourceError(
                f"{path}: it is damaged: var has {len(self.var):,} genes, and X {self.attributes['n_genes']:,}: copy "
                "it again, or ingest it again."
            )
        for name, length, layout in (
            ("data", self.nnz, data),
            ("indices", self.nnz, indices),
            ("indptr", self.n_cells + 1, INDPTR_LAYOUT),
        ):
            check_layout(self.path, root["X"][name], length, layout)
        n_blocks = max(-(-self.nnz // block_elements), 1)
        check_block_starts(self.path, self.block_starts, self.n_cells, n_blocks)
        check_lengths(self.path, root["obs"], self.n_cells)
        self._maybe_lost: dict[str, str] = {}  # columns whose values may be lost, with the name of a missing file
        if not has_manifest:
            self._check_chunks(root)
        shape = self.n_cells, len(self.var)
        self._rows = open_rows(path / "X", root["X"], (data, indices, INDPTR_LAYOUT), shape, self.nnz, block_elements)

    def _check_chunks(self, root: Any) -> None:
        """Raise SourceError where an older store, which has no list of its files, has lost values.

        Zarr does not write chunks of zeros, so a missing chunk may be correct. But cell names and `source_row` are
        never all zeros, and the number of cells in each category is known; for other columns there is no way to tell.
        """
        for name in ("var/_index", "obs/_index", *["obs/source_row"] * (max(self.source_sizes) > 1)):
            check_written(self.path, root[name])
        counted = self.statistics["library"]
        for name in self.obs_columns:
            element = root[f"obs/{name}"]
            lost = next(name_missing_chunks(element["codes"] if name in counted else element), None)
            if lost is not None and name in counted:
                codes = self._obs.read_column(name).cat.codes.to_numpy()
                found = np.bincount(codes[codes >= 0], minlength=len(counted[name]))
                if (found < counted[name][:, 0]).any():  # cells without counts are not in `counted`
                    raise SourceError(f"{lost} is missing: {self.path} was copied in part: copy it again.")
            elif lost is not None:
                self._maybe_lost[name] = lost

    @property
    def genes(self) -> pd.Index:
        """Gene names, in the order of the columns."""
        return self.var.index

    @property
    def sources(self) -> list[str]:
        """Paths of the sources that the cells came from, in the order of ingest."""
        return self.attributes["sources"]

    def read_block(self, block: int) -> Rows:
        """The counts of one block.

        Raises DamagedChunkError, naming the file, the block and the checksum, if they are damaged, SourceError if the
        store was deleted, cut short or replaced.
        """
        start, stop = (int(edge) for edge in self.block_starts[block : block + 2])
        try:
            return self._rows.read(start, stop)
        except DamagedChunkError as error:
            raise DamagedChunkError(f"block {block} (cells {start:,} to {stop - 1:,}): {error}") from None
        except SourceError:
            raise
        except (ValueError, MemoryError) as error:
            raise DamagedChunkError(
                f"block {block} (cells {start:,} to {stop - 1:,}): {self.path} is damaged ({error}): copy the store "
                "again from where it came from, or ingest it again."
            ) from None

    def ask_ahead(self, block: int) -> object:
        """Begin to read a block from a bucket; keep what is returned until it is read."""
        start, stop = (int(edge) for edge in self.block_starts[block : block + 2])
        size = self.attributes["block_chunks"]
        return self._rows.ask_ahead(start, stop, block * size, (block + 1) * size + 1)

    def read_obs(self, start: int, stop: int) -> pd.DataFrame:
        """`obs` of cells [start, stop)."""
        return self._obs.read(start, stop)

    def read_names(self, start: int = 0, stop: int | None = None) -> pd.Index:
        """Names of cells [start, stop), or of all."""
        return self._obs.read_names(start, self.n_cells if stop is None else stop)

    def read_column(self, name: str, start: int = 0, stop: int | None = None) -> pd.Series:
        """One `obs` column of cells [start, stop), or of all. Raises ColumnError, naming those that are there.

        Logs a warning, once, if the values of the column may have been lost.
        """
        if lost := self._maybe_lost.pop(name, None):
            log.warning("%s: %s is missing: its values are zero, or were lost in a copy", self.path, lost)
        return self._obs.read_column(name, start, stop)

    def split_keys(self, start: int, stop: int) -> np.ndarray:
        """uint64 [stop - start]: a hash of each cell's identity, the same as that of the source it came from."""
        source = self._obs.read_column("source", start, stop).cat.codes.to_numpy()
        return cell_keys(source, self._obs.read_column("source_row", start, stop).to_numpy())

    def hash_counts(self) -> str | None:
        """A hash of all counts in their order, from the checksums in the store's list of files, without reading them.

        None if the list does not say: stores of older versions have none, or checksums that do not depend on content.
        """
        listed = read_manifest(self._place) or {}
        files = {name: found for name, found in listed.items() if name.startswith("X/") and "/c/" in name}
        if not files or not all(checksum.startswith("crc32:") for _, checksum in files.values()):
            return None
        return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:16]

    def allow_fractions(self) -> "CellStore":
        """The same store: it holds whole counts only."""
        return self

    def close(self) -> None:
        """Close the files."""
        self._rows.close()
