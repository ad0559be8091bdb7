"""Entries in any order come back as rows, whatever the size of the buckets."""

import errno
import gc
import io
import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from atlasvi.loaders.errors import OutputError
from atlasvi.loaders.rows.spool import RowSpool


def spool_of(matrix: sp.coo_matrix, folder: Path, bucket_bytes: int, piece: int = 7) -> RowSpool:
    def entries():
        for low in range(0, matrix.nnz, piece):
            part = slice(low, low + piece)
            yield matrix.row[part], matrix.col[part], matrix.data[part]

    return RowSpool(entries, matrix.shape, matrix.nnz, matrix.data.dtype, folder, bucket_bytes)


def shuffled(seed: int, n_rows: int, n_cols: int, density: float = 0.3) -> sp.coo_matrix:
    rng = np.random.default_rng(seed)
    matrix = sp.random(n_rows, n_cols, density, format="coo", random_state=rng, dtype=np.float32)
    order = rng.permutation(matrix.nnz)
    values = rng.integers(1, 300, matrix.nnz).astype(np.int32)
    return sp.coo_matrix((values, (matrix.row[order], matrix.col[order])), shape=matrix.shape)


@given(
    seed=st.integers(0, 2**32 - 1),
    n_rows=st.integers(1, 30),
    n_cols=st.integers(1, 12),
    bucket_bytes=st.sampled_from([1, 50, 300, 2**20]),
    data=st.data(),
)
def test_any_range_of_rows_is_that_of_the_matrix(tmp_path_factory, seed, n_rows, n_cols, bucket_bytes, data):
    matrix = shuffled(seed, n_rows, n_cols)
    spool = spool_of(matrix, tmp_path_factory.getbasetemp(), bucket_bytes)
    start = data.draw(st.integers(0, n_rows))
    stop = data.draw(st.integers(start, n_rows))
    rows = spool.read_rows(start, stop)
    assert rows.has_canonical_format
    assert rows.dtype == matrix.dtype
    np.testing.assert_array_equal(rows.toarray(), matrix.toarray()[start:stop])
    spool.close()


def test_a_small_limit_makes_many_buckets_and_the_same_rows(tmp_path):
    matrix = shuffled(0, 500, 40)
    one, many = spool_of(matrix, tmp_path, 2**20, 1000), spool_of(matrix, tmp_path, 1000, 1000)
    assert (one.read_rows(0, 500) != many.read_rows(0, 500)).nnz == 0
    assert one.n_buckets == 1
    assert many.n_buckets > 50


def test_a_bucket_that_turns_out_large_is_split_again(tmp_path):
    # All entries in the first tenth of the rows: cutting the rows evenly would leave one bucket with everything.
    crowded = shuffled(1, 50, 40)
    matrix = sp.coo_matrix((crowded.data, (crowded.row, crowded.col)), shape=(500, 40))
    spool = spool_of(matrix, tmp_path, 1000, 1000)
    largest = 0
    sort = RowSpool._append

    def watch(self, file, array):
        nonlocal largest
        sort(self, file, array)
        if file.name == "data":
            largest = max(largest, array.nbytes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RowSpool, "_append", watch)
        rows = spool.read_rows(0, 500)
    assert (rows != matrix.tocsr()).nnz == 0
    assert largest <= 1000


def test_duplicates_of_a_narrow_type_are_summed_without_wrapping(tmp_path):
    values = np.array([200, 100, 7], dtype=np.uint8)
    matrix = sp.coo_matrix((values, ([1, 1, 0], [2, 2, 0])), shape=(2, 3))
    assert spool_of(matrix, tmp_path, 2**20).read_rows(0, 2).toarray().tolist() == [[7, 0, 0], [0, 0, 300]]


def test_nothing_is_written_before_the_first_read_and_nothing_left_after_close(tmp_path):
    spool = spool_of(shuffled(2, 20, 5), tmp_path, 100)
    assert list(tmp_path.iterdir()) == []
    spool.read_rows(0, 20)
    assert len(list(tmp_path.iterdir())) == 1
    spool.close()
    assert list(tmp_path.iterdir()) == []


def test_a_forgotten_spool_cleans_up_after_itself(tmp_path):
    spool = spool_of(shuffled(2, 20, 5), tmp_path, 100)
    spool.read_rows(0, 20)
    del spool
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_another_uses_is_not(tmp_path):
    matrix = shuffled(3, 20, 5)
    used = spool_of(matrix, tmp_path, 100)
    used.read_rows(0, 1)
    (of_used,) = tmp_path.iterdir()
    left, young = tmp_path / "atlasvi-spool-left", tmp_path / "atlasvi-spool-young"
    for folder in (left, young):
        folder.mkdir()
        (folder / "data").write_bytes(b"half")
    for folder in (of_used, left):
        os.utime(folder, (0, 0))
    with closing(spool_of(matrix, tmp_path, 100)) as other:
        other.read_rows(0, 1)
        assert not left.exists()
        assert young.exists()
        np.testing.assert_array_equal(used.read_rows(0, 20).toarray(), matrix.toarray())


def test_an_error_while_entries_are_read_leaves_no_files(tmp_path):
    def entries():
        yield np.array([0]), np.array([0]), np.array([1])
        raise OSError("read error")

    spool = RowSpool(entries, (2, 2), 2, np.dtype("i4"), tmp_path)
    with pytest.raises(OSError, match="read error"):
        spool.read_rows(0, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_names_the_folder_and_what_it_needs(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("builtins.open", lambda *_, **__: Full())
    with pytest.raises(OutputError, match=r"has no room.*TMPDIR") as caught:
        spool_of(shuffled(2, 20, 5), tmp_path, 100).read_rows(0, 20)
    monkeypatch.undo()
    assert str(tmp_path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_scratch_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OutputError, match="nowhere"):
        spool_of(shuffled(2, 20, 5), tmp_path / "nowhere", 100).read_rows(0, 20)
