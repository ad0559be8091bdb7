import itertools
import shutil
import threading
import tracemalloc
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from atlasvi.loaders.batches.loader import BatchLoader
from atlasvi.loaders.cells import cell_store
from atlasvi.loaders.cells.cells_protocol import Cells
from atlasvi.loaders.cells.open_cells import CellData, open_cells
from atlasvi.loaders.errors import DamagedChunkError, SourceError
from atlasvi.loaders.ingestion.ingest import ingest
from atlasvi.loaders.rows.block_rows import Rows
from tests.loaders.conftest import make_counts, write_counts

COUNTS = make_counts(501, 40, largest=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a.h5ad, and `store` (of many small blocks) and `larger-blocks`, stores of the same cells."""
    folder = tmp_path_factory.mktemp("data")
    path = write_counts(folder, "a", COUNTS)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cell_store, "BLOCK_CHUNKS", 4)
        for name, chunk in {"store": 8, "larger-blocks": 64}.items():
            patched.setattr(cell_store, "CHUNK", chunk)
            ingest(path, folder / name)
    return folder


@pytest.fixture(params=["store", "a.h5ad"])
def data(request, folder: Path) -> CellData:
    """The same cells as a cell store and straight from the file."""
    data = open_cells(folder / request.param)
    assert request.param == "a.h5ad" or len(data.block_starts) > 50
    return data


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
        assert resumed.state_dict() | {"epoch": 1, "batch": 0} == resumed.state_dict()


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_share_each_batch_and_a_run_resumes_on_another_number_of_them(data: CellData, world_size: int):
    whole = [set(batch.rows.tolist()) for batch in BatchLoader(data, 20, seed=1)]
    half = BatchLoader(data, 20, seed=1)
    iterator = iter(half)
    for _ in range(9):
        next(iterator)
    ranks = [BatchLoader(data, 20, seed=1, rank=rank, world_size=world_size) for rank in range(world_size)]
    for rank in ranks:
        rank.load_state_dict(half.state_dict())
    shares = [[batch.rows.tolist() for batch in rank] for rank in ranks]
    assert {len(share) for share in shares} == {len(whole) - 9}
    for batch, *parts in zip(whole[9:], *shares):
        assert sorted(itertools.chain(*parts)) == sorted(batch)


def test_a_state_of_another_order_is_refused(data: CellData):
    with pytest.raises(ValueError, match=r"batch_size=20.*batch_size=21"):
        BatchLoader(data, 21, seed=1).load_state_dict(BatchLoader(data, 20, seed=1).state_dict())


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_the_batches(data: CellData, threads: int):
    one, other = BatchLoader(data, 33, seed=2, threads=1), BatchLoader(data, 33, seed=2, threads=threads)
    for a, b in zip(one, other, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.tensors, b.tensors, strict=True))


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


def test_an_error_in_the_loop_leaves_no_thread_behind(data: CellData):
    with pytest.raises(KeyboardInterrupt):
        for _ in BatchLoader(data, 4, seed=0):
            raise KeyboardInterrupt
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("atlasvi-loader")]


def test_an_error_in_the_background_reaches_the_consumer(data: CellData, monkeypatch):
    def fail(block: int) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(data, "read_block", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        list(BatchLoader(data, 4, seed=0))


def test_a_path_will_do_and_covariates_by_name(write_h5ad):
    path = write_h5ad("a", COUNTS)
    loader = BatchLoader(path, 64, seed=0, codes=["batch", "n"])
    for batch in loader:
        rows = batch.rows.tolist()
        assert [loader.categories["batch"][code] for code in batch.codes["batch"].tolist()] == [
            f"b{row % 3}" for row in rows
        ]
        assert [loader.categories["n"][code] for code in batch.codes["n"].tolist()] == rows


def test_an_anndata_in_memory_is_refused():
    with pytest.raises(SourceError, match=r"The data is of type AnnData: give the path"):
        BatchLoader(ad.AnnData(np.ones((20, 3), np.float32)), 10, seed=0)


def test_a_batch_is_made_dense_or_a_sparse_tensor(data: CellData):
    rows = source_rows(data)
    for batch in BatchLoader(data, 100, seed=0):
        expected = COUNTS[rows[batch.rows.numpy()]].toarray()
        assert np.array_equal(batch.to_dense().numpy(), expected)
        assert np.array_equal(batch.to_sparse_csr().to_dense().numpy(), expected)


def test_any_model_is_trained_in_five_lines(data: CellData):
    model = torch.nn.Linear(len(data.genes), 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = model.weight.detach().clone()
    for batch in torch.utils.data.DataLoader(BatchLoader(data, 64, seed=0), batch_size=None):
        model(batch.to_dense()).square().mean().backward()
        optimizer.step()
    assert model.weight.isfinite().all()
    assert not torch.equal(model.weight, before)


def test_workers_of_a_dataloader_are_refused(data: CellData):
    with pytest.raises(RuntimeError, match=r"num_workers=0"):
        list(torch.utils.data.DataLoader(BatchLoader(data, 64, seed=0), batch_size=None, num_workers=1))


def test_genes_are_chosen_and_ordered(data: CellData):
    wanted = ["g7", "g3", "g30"]
    rows = source_rows(data)
    for batch in BatchLoader(data, 100, seed=0, genes=wanted):
        expected = COUNTS[rows[batch.rows.numpy()]][:, [7, 3, 30]].toarray()
        assert np.array_equal(batch.to_dense().numpy(), expected)
        assert np.array_equal(batch.library.numpy(), expected.sum(1))


def test_counts_of_any_size_many_genes_and_cells_without_counts_survive(write_h5ad, tmp_path: Path):
    counts = sparse.lil_matrix((60, 70_000), dtype=np.float32)
    for cell in range(1, 60):
        counts[cell, cell] = cell
        counts[cell, 69_999 - cell] = (1, 256, 65_535, 65_536, 10**6)[cell % 5]
    path = write_h5ad("wide", counts.tocsr())
    ingest(path, tmp_path / "store", empty_cells="keep")
    for data in (open_cells(path, empty_cells="keep"), open_cells(tmp_path / "store")):
        rows = source_rows(data)
        for batch in BatchLoader(data, 7, seed=0):
            assert np.array_equal(batch.to_dense().numpy(), counts.tocsr()[rows[batch.rows.numpy()]].toarray())


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> CellData:
    """A store of small blocks of which one holds a flipped byte."""
    shutil.copytree(folder / "larger-blocks", tmp_path / "store")
    shard = tmp_path / "store" / "X" / "data" / "c" / "0"
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    shard.write_bytes(content)
    return open_cells(tmp_path / "store")


@pytest.mark.shard_reader
def test_a_damaged_block_stops_the_loader_and_is_named(damaged: CellData):
    where = r"block 0 \(cells 0 to \d+\).*X/data/c/0: chunk 0"
    with pytest.raises(DamagedChunkError, match=rf"{where}.*its crc32c is [0-9a-f]{{8}}, written as [0-9a-f]{{8}}"):
        list(BatchLoader(damaged, 32, seed=0))


@pytest.mark.parametrize("batch_size", [4, 32])
def test_a_damaged_block_is_skipped_when_told_to_and_its_cells_are_counted(damaged: CellData, caplog, batch_size: int):
    loader = BatchLoader(damaged, batch_size, seed=0, damaged="skip")
    lost = int(damaged.block_starts[1])
    for _ in range(2):
        assert sorted(seen(loader)) == list(range(lost, damaged.n_cells))
    assert loader.lost_cells == lost
    assert f"{lost} cells left out" in caplog.text


@pytest.mark.shard_reader
def test_a_store_replaced_or_deleted_while_it_is_read_is_noticed(write_h5ad, tmp_path: Path):
    other = tmp_path / "other"
    ingest(write_h5ad("b", make_counts(501, 40, seed=3)), other)
    ingest(write_h5ad("a", COUNTS), tmp_path / "again")
    data = open_cells(tmp_path / "again")
    loader = BatchLoader(data, 32, seed=0)
    assert len(list(loader)) == len(loader)
    shutil.rmtree(tmp_path / "again")
    other.rename(tmp_path / "again")
    with pytest.raises(SourceError, match=r"was replaced or changed"):
        list(loader)
    shutil.rmtree(tmp_path / "again")
    with pytest.raises(SourceError, match=r"is missing"):
        list(loader)


class LazyCells(Cells):
    """Stands for a store of many blocks, which are made when they are read."""

    path, group_blocks, n_cells, block_starts = "lazy.store", 2, 0, np.zeros(1, np.int64)
    genes = pd.Index([f"g{k}" for k in range(200)])

    def __init__(self, n_blocks: int, block_cells: int) -> None:
        self.n_cells, self.block_starts = n_blocks * block_cells, np.arange(n_blocks + 1) * block_cells

    def read_block(self, block: int) -> Rows:
        start, stop = self.block_starts[block : block + 2]
        counts = 1 + (np.arange(start, stop)[:, None] + np.arange(200)) % 7
        ends = np.arange(stop - start + 1) * 200
        return Rows.from_csr(
            int(start), ends, np.tile(np.arange(200, dtype=np.uint16), stop - start), counts.astype(np.uint8).ravel()
        )


@pytest.mark.parametrize("by", ["cells", "weights"])
def test_few_cells_of_many_blocks_take_no_more_memory_than_some_blocks(by: str):
    data = LazyCells(60, 1000)
    few = np.arange(data.n_cells) % 97 == 5
    chosen = {"cells": few} if by == "cells" else {"weights": np.where(few, 1.0, 1e-3), "cells": few}
    next(iter(BatchLoader(data, 256, seed=0, threads=1, **chosen)))  # compiles
    tracemalloc.start()
    batches = list(BatchLoader(data, 256, seed=0, threads=1, **chosen))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 15 * 1000 * 200 * 3  # a minibatch has cells of 25 blocks, and some minibatches wait
    rows = np.concatenate([batch.rows.numpy() for batch in batches])
    assert sorted(rows) == np.flatnonzero(few).tolist()
    values = np.concatenate([batch.to_dense().numpy() for batch in batches])
    assert np.array_equal(values, 1 + (rows[:, None] + np.arange(200)) % 7)
    assert np.array_equal(np.concatenate([batch.library.numpy() for batch in batches]), values.sum(1))
