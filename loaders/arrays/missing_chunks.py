"""Chunks of Zarr arrays that are not stored: omitted because they hold only zeros, or lost on the way here?

zarr-python 3 does not write a chunk that holds only the array's fill value (0, or empty text), and reads every missing
chunk as the fill value, also one that was lost. The other parts of the file show which it was:

  sparse indices  a row has no gene twice, so in a chunk of zeros each entry is the only one of its row
  sparse indptr   zero only at the beginning: the first rows are empty, all entries so far belong to one row
  an array without any stored chunk  zeros must be plausible: a mask, codes of one category, a column of numbers
  other arrays of one dimension  a run of zeros that fills a chunk hardly ends just at its border, so the chunks beside
                  it end in longer runs of zeros than they have elsewhere; every category still has a cell
  dense matrices  the same genes have almost no counts in the chunks of other cells
"""

from collections.abc import Iterator
from itertools import product
from typing import Any, cast

import numpy as np
import zarr
from zarr.core.sync import sync

from atlasvi.loaders.places.zarr_stores import find_folder

Node = Any  # h5py.Group | h5py.Dataset | zarr.Group | zarr.Array, which have no common type

MOST_NAMED_CHUNKS = 2**22  # if an array claims to have more, they are not searched for by name
FEWEST_ZEROS = 32  # of a run of zeros that may continue in the next chunk
FEW_COUNTS = 10  # if a chunk's genes have at most so many in other cells, they may have none in these
SAMPLED_CHUNKS = 4  # chunks of a dense matrix that are looked at for each block of genes


def find_missing_chunks(array: zarr.Array) -> tuple[int, list[int] | range]:
    """(stored chunks or shards that a Zarr array should have, indices of the missing ones)."""
    grid = count_chunks(array)
    n_expected = int(np.prod(grid, dtype=object))
    if n_expected == 0:
        return 0, []
    prefix = f"{array.path}/" if array.path else ""
    keys = set(sync(_list_keys(array.store, prefix)))
    if n_expected > max(len(keys), MOST_NAMED_CHUNKS):
        return n_expected, range(n_expected - len(keys))
    key_of = array.metadata.encode_chunk_key
    places = product(*map(range, grid))
    return n_expected, [k for k, place in enumerate(places) if prefix + key_of(place) not in keys]


def _stored(array: zarr.Array) -> tuple[int, ...]:
    """The shape of what is stored as one object: a shard if the array has shards, else a chunk."""
    return array.shards or array.chunks


def count_chunks(array: zarr.Array) -> list[int]:
    """How many stored chunks or shards an array has along each dimension."""
    return [-(-n // step) for n, step in zip(array.shape, _stored(array))]


async def _list_keys(store: Any, prefix: str) -> list[str]:
    return [key async for key in store.list_prefix(prefix)]


def can_be_zeros(name: str, array: zarr.Array, root: Node, n_expected: int, missing: list[int] | range) -> bool:
    """Whether the rest of a file is consistent with missing chunks that hold only zeros (see above)."""
    folder, _, last = name.rpartition("/")
    parent = root[folder] if folder else root
    kind = str(parent.attrs.get("encoding-type", ""))
    is_sparse = kind in ("csr_matrix", "csc_matrix")
    if array.fill_value not in (0, None, "") or (isinstance(missing, range) and len(missing) < n_expected):
        return False
    if is_sparse and last == "indices" and array.ndim == 1:
        return _are_single_entries(parent, array, missing)
    if is_sparse and last == "indptr" and array.ndim == 1:
        return _are_leading_empty_rows(parent, array, missing)
    if len(missing) == n_expected:
        return array.ndim == 1 and not is_sparse and _can_be_all_zeros(last, kind, array, parent)
    if array.ndim == 2:
        return _have_few_counts(array, missing)
    return array.ndim == 1 and _lie_in_longer_zeros(array, missing) and _uses_all_categories(last, kind, array, parent)


def _can_be_all_zeros(last: str, kind: str, array: zarr.Array, parent: Node) -> bool:
    """Whether an array without any stored chunk can be all zeros, or all empty text."""
    if _has_chunk_folder(array):
        return False
    if kind == "categorical":
        return _count_categories(parent["categories"]) == 1
    if "categories" in array.attrs:  # codes in a file of anndata 0.7
        return _count_categories(parent[str(array.attrs["categories"])]) == 1
    if array.dtype.kind in "biuf":
        return True
    return kind.startswith("nullable") and last == "values" and bool(np.asarray(parent["mask"][:]).all())


def _count_categories(categories: Node) -> int:
    return int((categories if hasattr(categories, "shape") else categories["values"]).shape[0])


def _has_chunk_folder(array: zarr.Array) -> bool:
    """Whether the folder of an array's chunks exists: it is made with the first chunk, so there was one."""
    folder, first = find_folder(array), array.metadata.encode_chunk_key((0,) * array.ndim)
    return folder is not None and "/" in first and (folder / first.split("/")[0]).is_dir()


def _are_single_entries(matrix: zarr.Group, indices: zarr.Array, missing: list[int] | range) -> bool:
    """Whether each entry in the missing chunks is alone in its row: gene 0 can't occur twice in a row."""
    step, length = _stored(indices)[0], indices.shape[0]
    pointers: Node = matrix["indptr"]
    if find_missing_chunks(pointers)[1]:
        return False
    starts = np.asarray(pointers[:])
    for k in missing:
        low, high = k * step, min((k + 1) * step, length)
        inside = starts[np.searchsorted(starts, low) : np.searchsorted(starts, high)]
        if len(np.unique(inside)) < high - low:
            return False
    return True


def _are_leading_empty_rows(matrix: zarr.Group, indptr: zarr.Array, missing: list[int] | range) -> bool:
    """Whether the missing chunks are the first ones, and the next chunk begins with the entries of one row."""
    first = len(missing) * _stored(indptr)[0]
    if list(missing) != list(range(len(missing))) or first >= indptr.shape[0]:
        return cast(Node, matrix["data"]).shape == (0,)
    indices, pointers = cast(Node, matrix["indices"]), cast(Node, indptr)
    entries = np.asarray(indices[: int(pointers[first])])
    return len(np.unique(entries)) == len(entries)


def _lie_in_longer_zeros(array: zarr.Array, missing: list[int] | range) -> bool:
    """Whether each run of missing chunks lies between zeros that look like parts of one longer run of zeros."""
    step, n_stored = _stored(array)[0], count_chunks(array)[0]
    zero = 0 if array.fill_value is None else array.fill_value
    for first, last in _find_runs(missing):
        before = array[(first - 1) * step : first * step] if first else None
        after = array[(last + 1) * step : (last + 2) * step] if last + 1 < n_stored else None
        beside = [np.asarray(before)] if before is not None else []
        beside += [np.asarray(after)[::-1]] if after is not None else []
        if not all(ends_in_long_zeros(values == zero) for values in beside):
            return False
    return True


def _find_runs(numbers: list[int] | range) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of each run of consecutive numbers in an ascending list."""
    values = np.asarray(numbers)
    for run in np.split(values, np.flatnonzero(np.diff(values) > 1) + 1):
        yield int(run[0]), int(run[-1])


def ends_in_long_zeros(is_zero: np.ndarray) -> bool:
    """Whether a chunk ends in a run of zeros at least twice as long as any between two of its other values.

    is_zero  bool [values of the chunk]. False for a chunk of only zeros: a program that stored it omits none.
    """
    others = np.flatnonzero(~is_zero)
    if not len(others):
        return False
    at_end, longest = len(is_zero) - 1 - others[-1], np.diff(others).max(initial=1) - 1
    return bool(at_end >= max(FEWEST_ZEROS, 2 * longest))


def _uses_all_categories(last: str, kind: str, array: zarr.Array, parent: Node) -> bool:
    """Whether an array is not codes, or codes that use all categories: anndata writes no category without a cell."""
    if last != "codes" or kind != "categorical":
        return "categories" not in array.attrs
    return len(np.setdiff1d(np.arange(_count_categories(parent["categories"])), np.asarray(array[:]))) == 0


def _have_few_counts(matrix: zarr.Array, missing: list[int] | range) -> bool:
    """Whether the genes of each missing chunk have almost no counts in the chunks of other cells.

    Where no chunk of these genes is stored, each block of cells must have stored chunks of other genes, and there must
    be at least two blocks.
    """
    n_rows, n_columns = count_chunks(matrix)
    rows, columns = np.divmod(np.asarray(missing), n_columns)
    if n_rows < 2 or (np.bincount(rows, minlength=n_rows) == n_columns).any():
        return False
    height, width = _stored(matrix)
    for column in np.unique(columns):
        stored = np.setdiff1d(np.arange(n_rows), rows[columns == column])[:SAMPLED_CHUNKS]
        for row in stored:
            values = matrix[row * height : (row + 1) * height, column * width : (column + 1) * width]
            if not 0 < np.count_nonzero(values) <= FEW_COUNTS:  # 0: a stored chunk of zeros, so none is omitted
                return False
    return True
