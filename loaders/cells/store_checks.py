"""Checks of a store's metadata before its data is read: types, sizes that fit, chunks that exist."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import zarr

from atlasvi.loaders.arrays.missing_chunks import count_chunks, find_missing_chunks
from atlasvi.loaders.arrays.shards import Layout
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.places.zarr_stores import find_folder
from atlasvi.loaders.tables.anndata_tables import column_length

MOST_CHUNK, MOST_BLOCK = 2**24, 2**30  # elements; more is taken for damage, not allocated


def check_attributes(attributes: Mapping[str, Any], path: object, expected: Mapping[str, type]) -> None:
    """Raise SourceError if an attribute is missing or has another type, or a number is negative."""
    for name, kind in expected.items():
        value = attributes.get(name)
        if type(value) is not kind or (isinstance(value, int) and value < 0):
            raise SourceError(
                f"{path}/zarr.json is damaged: its attribute {name!r} is {value!r}: copy the store again from where it "
                "came from, or make it again."
            )


def check_lengths(path: str, table: Any, n_rows: int) -> None:
    """Raise SourceError unless all columns of a table in a store exist and have `n_rows` rows."""
    for name in ["_index", *table.attrs["column-order"]]:
        element = table[name]
        if (found := column_length(element)) != n_rows:
            raise SourceError(
                f"{path}: obs column {name!r} has {found:,} rows for {n_rows:,} cells: the store is damaged: "
                "copy it again, or make it again."
            )


def check_layout(path: str, array: zarr.Array, length: int, layout: Layout) -> None:
    """Raise SourceError unless an array has the shape, dtype, chunks and shards that its reader expects."""
    found = array.shape, array.dtype, array.chunks, array.shards
    if found != ((length,), layout.dtype, (layout.chunk,), (layout.shard,)):
        raise SourceError(
            f"{path}: {array.path} has shape, dtype, chunks and shards {found}, which differ from the store's "
            f"attributes ({length:,} of {layout.dtype}, {layout.chunk:,}, {layout.shard:,}): it is damaged: copy it "
            "again."
        )


def check_block_starts(path: str, starts: np.ndarray, n_cells: int, n_blocks: int) -> None:
    """Raise SourceError unless the blocks of a store cover all of its cells, in order."""
    # there may be fewer than n_blocks, if the last ones hold only the end of the last cell
    fits = starts.ndim == 1 and starts.dtype.kind in "iu" and 2 <= len(starts) <= n_blocks + 1
    if not fits or starts[0] != 0 or starts[-1] != n_cells or (starts[1:] < starts[:-1]).any():
        raise SourceError(f"{path}: uns/atlasvi/block_starts is damaged: copy the store again, or make it again.")


def name_missing_chunks(array: zarr.Array) -> Iterator[str]:
    """Files of an array's missing chunks, which are zeros or lost. Only in a folder or a bucket, and not for shards."""
    folder, grid = find_folder(array), count_chunks(array)
    if folder is None or not array.size:
        return
    for number in find_missing_chunks(array)[1]:
        yield str(folder / array.metadata.encode_chunk_key(tuple(map(int, np.unravel_index(number, grid)))))


def check_written(path: str, array: zarr.Array) -> None:
    """Raise SourceError if a chunk is missing of an array that is never all zeros (names, latents, weights).

    For stores of older versions, which have no list of their files.
    """
    for name in name_missing_chunks(array):
        raise SourceError(f"{name} is missing: {path} was copied in part: copy it again, or make it again.")
