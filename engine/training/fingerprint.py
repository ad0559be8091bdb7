"""Whether data is that of a run: values that identify it, which a run keeps and which are compared on resume."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from atlasvi.engine.training.splits import SPLIT_BY_INDEX
from atlasvi.loaders.cells.coded_columns import SLICE_CELLS
from atlasvi.loaders.cells.open_cells import CellData
from atlasvi.loaders.sources.data_spec import ANNDATA_FORMATS, DataSpec

SAMPLE_CELLS = 16  # each is in another block, and a block is read whole: these take less than a second
HASHED = 2**16  # values that are widened at a time


def fingerprint(data: CellData) -> dict[str, Any]:
    """Values that identify the data and the order of its cells: sizes, gene names, the layer, and two blocks of counts.

    With the first and the last block, the counts of another layer, or the same cells in another order, are noticed.
    Raises CountsError for bad counts.
    """
    genes = "\n".join(map(str, data.genes)).encode()
    return {
        "n_cells": data.n_cells,
        "n_genes": len(data.genes),
        "layer": data.layer,
        "genes_sha256": hashlib.sha256(genes).hexdigest()[:16],
        "first_block_sha256": _hash_arrays(data.read_block(0).to_csr()),
        "last_block_sha256": _hash_arrays(data.read_block(len(data.block_starts) - 2).to_csr()),
    }


def hash_sample(data: CellData) -> str:
    """A hash of the counts of a few cells, the same for a file and a cell store made from it, whatever their blocks.

    The cells are those whose identity has the smallest hashes. Raises CountsError for bad counts.
    """
    keys, cells = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    for start in range(0, data.n_cells, SLICE_CELLS):
        stop = min(start + SLICE_CELLS, data.n_cells)
        keys = np.concatenate([keys, data.split_keys(start, stop)])
        cells = np.concatenate([cells, np.arange(start, stop)])
        order = np.lexsort([cells, keys])[:SAMPLE_CELLS]
        keys, cells = keys[order], cells[order]
    blocks = np.searchsorted(data.block_starts, cells, side="right") - 1
    found: dict[int, list[np.ndarray]] = {}
    for block in np.unique(blocks).tolist():
        indptr, indices, counts = data.read_block(block).to_csr()
        for cell in cells[blocks == block].tolist():
            row = cell - int(data.block_starts[block])
            inside = slice(int(indptr[row]), int(indptr[row + 1]))
            found[cell] = [indices[inside], counts[inside]]
    return _hash_arrays([*keys[:, None], *(part for cell in cells.tolist() for part in found[cell])])


def is_data_of_run(saved: Mapping[str, Any], began_with: DataSpec, data: CellData) -> bool:
    """Whether a run with the configuration `saved` was started with this data, as far as its fingerprint shows.

    began_with  how the run's data was opened then
    In another format, the order of the cells may be another one, unless the run was split by their indices; then a few
    cells are compared. In the same format all of `fingerprint` is. Runs of older versions do not have all of it.
    """
    now = fingerprint(data)
    formats = {began_with.format, data.spec.format}
    if len(formats) == 2 and "sample_sha256" in saved and saved.get("split_column") != SPLIT_BY_INDEX:
        names = ["n_cells", "n_genes", "genes_sha256", *(["layer"] if formats <= set(ANNDATA_FORMATS) else [])]
        now = {**{name: now[name] for name in names}, "sample_sha256": hash_sample(data)}
    return not began_with.contradicts(data.spec) and all(saved.get(key, value) == value for key, value in now.items())


def _hash_arrays(arrays: Iterable[np.ndarray]) -> str:
    """A hash of values, whatever their types."""
    digest = hashlib.sha256()
    for part in arrays:
        for at in range(0, len(part), HASHED):  # in pieces: a block has four million counts
            piece = part[at : at + HASHED]
            digest.update(piece.astype(np.float64 if piece.dtype.kind == "f" else np.int64).tobytes())
    return digest.hexdigest()[:16]
