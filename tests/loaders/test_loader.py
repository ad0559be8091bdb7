import threading
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from atlasvi.loaders import cell_store
from atlasvi.loaders.cells import CellData, open_cells
from atlasvi.loaders.ingestion import ingest
from atlasvi.loaders.loader import BatchLoader

from .conftest import make_counts

COUNTS = make_counts(501, 40, largest=300)


@pytest.fixture(params=["store", "h5ad"])
def data(request, write_h5ad, tmp_path: Path, monkeypatch) -> CellData:
    """The same cells as a cell store (of many small blocks) and straight from the file."""
    path = write_h5ad("a", COUNTS)
    if request.param == "h5ad":
        return open_cells(path)
    monkeypatch.setattr(cell_store, "CHUNK", 8)
    monkeypatch.setattr(cell_store, "BLOCK_CHUNKS", 4)
    ingest(path, tmp_path / "store")
    store = open_cells(tmp_path / "store")
    assert len(store.block_starts) > 50
    return store


def source_rows(data: CellData) -> np.ndarray:
    return data.read_column("source_row").to_numpy()


def seen(loader: BatchLoader) -> np.ndarray:
    return np.concatenate([batch.rows.numpy() for batch in loader])


def test_a_batch_holds_the_counts_of_its_cells(data: CellData):
    rows = source_rows(data)
    codes = {"batch": np.arange(data.n_cells) % 7}
    for batch in BatchLoader(data, 64, seed=0, codes=codes):
        csr = (batch.counts.numpy(), batch.indices.numpy(), batch.indptr.numpy())
        got = sparse.csr_matrix(csr, shape=(len(batch), batch.n_genes))
        expected = COUNTS[rows[batch.rows.numpy()]]
        assert (got != expected).nnz == 0
        assert np.array_equal(
            batch.library.numpy(),
            expected.sum(1).A1 if hasattr(expected, "A1") else np.asarray(expected.sum(1)).ravel(),
        )
        assert np.array_equal(batch.codes["batch"].numpy(), batch.rows.numpy() % 7)


@pytest.mark.parametrize("batch_size", [1, 64, 501, 1000])
def test_an_epoch_visits_every_cell_once_and_drops_no_tail(data: CellData, batch_size: int):
    loader = BatchLoader(data, batch_size, seed=0)
    sizes = [len(batch) for batch in loader]
    assert sizes[:-1] == [batch_size] * (len(loader) - 1)
    assert sum(sizes) == data.n_cells
    assert sorted(seen(loader)) == list(range(data.n_cells))


def test_epochs_differ_and_the_same_seed_and_epoch_agree(data: CellData):
    loader, again = BatchLoader(data, 64, seed=5), BatchLoader(data, 64, seed=5)
    first, second = seen(loader), seen(loader)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, seen(again))
    again.set_epoch(1)
    assert np.array_equal(second, seen(again))
    assert not np.array_equal(first, seen(BatchLoader(data, 64, seed=6)))


def test_resuming_at_a_batch_gives_the_tail_of_the_epoch(data: CellData):
    whole = [batch.rows.tolist() for batch in BatchLoader(data, 20, seed=1)]
    for at in (0, 1, 7, len(whole) - 1):
        loader = BatchLoader(data, 20, seed=1)
        iterator = iter(loader)
        for _ in range(at):
            next(iterator)
        resumed = BatchLoader(data, 20, seed=1)
        resumed.load_state_dict(loader.state_dict())
        assert [batch.rows.tolist() for batch in resumed] == whole[at:]
        assert resumed.state_dict() == {"epoch": 1, "batch": 0}


def test_only_the_chosen_cells_are_visited(data: CellData):
    chosen = np.random.default_rng(0).random(data.n_cells) < 0.3
    loader = BatchLoader(data, 16, seed=0, cells=chosen)
    assert sorted(seen(loader)) == np.flatnonzero(chosen).tolist()
    assert loader.n_cells == chosen.sum()


def test_without_shuffling_cells_come_in_the_order_of_the_data(data: CellData):
    assert seen(BatchLoader(data, 33, seed=0, shuffle=False)).tolist() == list(range(data.n_cells))


def test_the_identity_of_a_cell_is_the_same_in_the_store_and_in_its_source(write_h5ad, tmp_path: Path):
    path = write_h5ad("a", COUNTS)
    ingest(path, tmp_path / "store")
    store, source = open_cells(tmp_path / "store"), open_cells(path)
    keys = source.split_keys(0, source.n_cells)
    assert len(np.unique(keys)) == len(keys)
    assert np.array_equal(store.split_keys(0, store.n_cells), keys[source_rows(store)])


def test_breaking_off_leaves_no_thread_behind(data: CellData):
    for _ in BatchLoader(data, 4, seed=0):
        break
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("atlasvi-loader")]


def test_an_error_in_the_background_reaches_the_consumer(data: CellData, monkeypatch):
    def fail(block: int) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(data, "read_block", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        list(BatchLoader(data, 4, seed=0))
