"""Data in a bucket gives what the same data on disk gives: cells, training, minified stores and their answers."""

import gc
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from typer.testing import CliRunner

from atlasvi.engine.cli.commands import app
from atlasvi.engine.minified.minified_store import MinifiedStore
from atlasvi.engine.minified.minify import minify
from atlasvi.engine.minified.places import name_place
from atlasvi.engine.queries.cell_choice import choose_cells
from atlasvi.engine.training.train import train
from atlasvi.loaders.batches.loader import MOST_THREADS, REMOTE_THREADS, BatchLoader
from atlasvi.loaders.cells import cell_store
from atlasvi.loaders.cells.added_columns import add_obs_columns
from atlasvi.loaders.cells.cell_views import CellsView
from atlasvi.loaders.cells.cells_protocol import Cells
from atlasvi.loaders.cells.open_cells import open_cells
from atlasvi.loaders.errors import DamagedChunkError, SourceError, StorageError
from atlasvi.loaders.ingestion.ingest import ingest
from atlasvi.loaders.manifest import read_json
from atlasvi.loaders.places import byte_files, connections, requests
from atlasvi.loaders.places.disk_cache import use_cache
from atlasvi.loaders.places.object_path import to_place
from atlasvi.loaders.places.objects import traffic
from atlasvi.loaders.sources.open_source import open_source
from tests.engine.training.small_runs import FREQUENT, SMALL, Killed, assert_same_run, at_step, write_cells
from tests.faulty_proxy import run_proxy
from tests.loaders.cells.test_open_cells import write_collection
from tests.loaders.conftest import make_counts
from tests.loaders.sources.test_open_source import LAYOUTS, write_as
from tests.s3_server import Bucket


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    return write_cells(tmp_path / "cells.h5ad")


@pytest.fixture
def store(cells: Path, tmp_path: Path) -> Path:
    ingest(cells, tmp_path / "store", workers=1)
    return tmp_path / "store"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a cache that is used."""
    monkeypatch.setenv("ATLASVI_CACHE", "")
    monkeypatch.setenv("ATLASVI_CACHE_GB", "")
    use_cache(tmp_path / "cache", 1)
    return tmp_path / "cache"


def assert_same_cells(one: Cells, other: Cells) -> None:
    """All that is read of both is the same."""
    pd.testing.assert_frame_equal(one.var, other.var)
    pd.testing.assert_frame_equal(one.read_obs(0, one.n_cells), other.read_obs(0, other.n_cells))
    np.testing.assert_array_equal(one.block_starts, other.block_starts)
    np.testing.assert_array_equal(one.split_keys(3, 70), other.split_keys(3, 70))
    for block in range(len(one.block_starts) - 1):
        for mine, theirs in zip(one.read_block(block).to_csr(), other.read_block(block).to_csr()):
            np.testing.assert_array_equal(mine, theirs)


def test_a_cell_store_in_a_bucket_holds_the_same_cells(store: Path, bucket: Bucket):
    address = bucket.put(store, "same")
    opened = open_cells(address)
    assert (opened.path, opened.spec.endpoint) == (address, bucket.endpoint)
    assert_same_cells(open_cells(store), opened)
    assert_same_cells(opened, open_cells(Path(address)))
    assert opened.hash_counts() == open_cells(store).hash_counts() is not None
    with pytest.raises(SourceError, match="columns are added on local disk alone: copy it there"):
        add_obs_columns(address, pd.DataFrame())


@pytest.mark.parametrize("layout", [*LAYOUTS, "collection", "h5ad chunks", "zarr3 shards"])
def test_a_source_in_a_bucket_gives_the_same_counts_and_tables(layout: str, bucket: Bucket, tmp_path: Path):
    path = write_source(layout, tmp_path)
    folder = path.parent if path.suffix == ".mtx" else path
    address = bucket.put(folder, folder.name)
    local, remote = open_source(path), open_source(address)
    assert (remote.path, type(remote)) == (address, type(local))
    pd.testing.assert_frame_equal(local.var, remote.var)
    pd.testing.assert_frame_equal(local.read_obs(0, 300), remote.read_obs(0, 300))
    pd.testing.assert_frame_equal(local.read_obs(17, 60), remote.read_obs(17, 60))
    assert local.count_run_cells() == remote.count_run_cells()
    for start, stop in ((0, 300), (7, 8), (100, 290)):
        assert (local.read_counts(start, stop) != remote.read_counts(start, stop)).nnz == 0
        mine, theirs = local.read_narrow(start, stop), remote.read_narrow(start, stop)
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            for one, other in zip(mine.to_csr(), theirs.to_csr()):
                np.testing.assert_array_equal(one, other)
    for source in (local, remote):
        source.close()


def write_source(layout: str, folder: Path) -> Path:
    """A source of 300 cells with columns in obs, in one of LAYOUTS or other layouts; returns its path."""
    obs = pd.DataFrame(
        {"batch": pd.Categorical([f"b{k % 3}" for k in range(300)]), "n": np.arange(300), "note": ["x"] * 300},
        index=[f"cell{k}" for k in range(300)],
    )
    adata = ad.AnnData(make_counts(300, 50), obs, pd.DataFrame(index=[f"gene{k}" for k in range(50)]))
    if layout == "collection":
        return write_collection(folder / "c.zarr", {"dataset_0": adata[:100].copy(), "dataset_1": adata[100:].copy()})
    if layout == "h5ad chunks":
        adata.write_h5ad(folder / "a.h5ad", compression="gzip")
        with h5py.File(folder / "a.h5ad", "r+") as file:
            for name in ("data", "indices"):
                values = file[f"X/{name}"][:]
                del file[f"X/{name}"]
                file["X"].create_dataset(name, data=values, chunks=(100,), compression="gzip", shuffle=True)
        return folder / "a.h5ad"
    if layout == "zarr3 shards":
        with ad.settings.override(zarr_write_format=3):
            adata.write_zarr(folder / "a.zarr", chunks=None)
        root = zarr.open_group(folder / "a.zarr")
        for name in ("data", "indices"):
            values = root[f"X/{name}"][:]
            del root[f"X/{name}"]
            root["X"].create_array(name, data=values, chunks=(100,), shards=(1000,))
        return folder / "a.zarr"
    return write_as(layout, adata, folder / "layout")


def test_a_file_in_a_bucket_is_read_by_few_requests(bucket: Bucket, tmp_path: Path):
    counts = make_counts(20_000, 100)
    ad.AnnData(counts).write_h5ad(tmp_path / "a.h5ad", compression="gzip")
    address = bucket.put(tmp_path / "a.h5ad", "a.h5ad")
    traffic.requests = traffic.n_bytes = 0
    source = open_source(address)
    rows = source.read_narrow(0, 20_000)
    assert rows is not None
    np.testing.assert_array_equal(rows.to_csr()[2], counts.data)
    assert traffic.requests < 30
    assert traffic.n_bytes < 3 * (tmp_path / "a.h5ad").stat().st_size


def test_a_file_in_a_bucket_that_nobody_closed_does_no_harm_when_python_ends(bucket: Bucket, tmp_path: Path):
    address = bucket.put(write_source("h5ad", tmp_path), "a.h5ad")
    code = (
        "import sys; from atlasvi.loaders.places.hdf5_files import open_hdf5; "
        "from atlasvi.loaders.places.object_path import to_place; "
        "group = open_hdf5(to_place(sys.argv[1]))['obs']; print(len(group))"
    )
    done = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "4"), done.stderr


def test_a_file_of_a_web_server_is_read_and_a_folder_is_refused(bucket: Bucket, tmp_path: Path):
    path = write_source("h5ad chunks", tmp_path)
    served = Bucket(bucket.url.replace("atlases", "open"), bucket.endpoint)  # whose files anybody may get
    address = served.put(path, "a.h5ad").replace("s3:/", bucket.endpoint)
    local, remote = open_source(path), open_source(address)
    assert remote.path == address
    assert (local.read_counts(0, 300) != remote.read_counts(0, 300)).nnz == 0
    with pytest.raises(SourceError, match=r"there is no such file|no permission to read it"):
        open_source(address.replace("a.h5ad", "b.h5ad"))
    with pytest.raises(SourceError, match="Folders of a web server are not read"):
        open_cells(served.put(write_source("zarr3 csr", tmp_path), "a.zarr").replace("s3:/", bucket.endpoint))


def test_a_file_is_read_in_a_bucket_that_may_not_be_listed(bucket: Bucket, tmp_path: Path, monkeypatch):
    address = bucket.put(write_source("h5ad csr", tmp_path), "a.h5ad")
    direct = open_cells(address)
    with run_proxy(bucket.endpoint) as proxy:
        monkeypatch.setenv("ATLASVI_STORAGE", f"endpoint={proxy.endpoint}")
        proxy.hides = True
        assert_same_cells(direct, open_cells(address))
        assert name_place(address) is None
        with pytest.raises(StorageError, match=r"no permission to read it .*or it is not there"):
            open_cells(f"{bucket.url}/b.h5ad")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nothing.h5ad", "there is no such file or folder; check the name"),
        ("empty.h5ad", r"the file is empty \(0 bytes\)"),
        ("text.h5ad", "by its name an HDF5 file, but its content is not"),
        ("folder", "a folder of no known format"),
    ],
)
def test_what_is_no_source_in_a_bucket_is_one_sentence(name: str, sentence: str, bucket: Bucket, tmp_path: Path):
    for file, content in (("empty.h5ad", ""), ("text.h5ad", "counts"), ("folder", "")):
        (tmp_path / file).write_text(content)
        bucket.put(tmp_path / file, f"{file}/a.txt" if file == "folder" else file)
    with pytest.raises(SourceError, match=f"{bucket.url}/{name}: {sentence}"):
        open_source(f"{bucket.url}/{name}")


def test_training_from_a_bucket_gives_the_weights_of_training_from_disk(store: Path, bucket: Bucket, tmp_path: Path):
    address = bucket.put(store, "trained")
    runs = [
        train(data, tmp_path / name, batch_key="batch", epochs=2, settings=SMALL)
        for data, name in ((store, "local"), (address, "remote"))
    ]
    assert_same_run(*runs)
    kept = read_json(tmp_path / "remote" / "config.json")["data"]
    assert kept == {"path": address, "endpoint": bucket.endpoint}, "the endpoint is kept, credentials are not"


def test_a_run_that_was_killed_is_resumed_from_its_bucket_with_an_empty_cache_without_saying_how_to_reach_it(
    store: Path, bucket: Bucket, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def kill() -> None:
        raise Killed

    address, whole = bucket.put(store, "resumed"), train(store, tmp_path / "whole", **FREQUENT)
    at_step(monkeypatch, 8, kill)
    with pytest.raises(Killed):
        train(address, tmp_path / "run", **FREQUENT)
    monkeypatch.setenv("ATLASVI_STORAGE", "")
    use_cache(tmp_path / "another cache", 1)
    assert_same_run(whole, train(address, tmp_path / "run", resume=True))


def test_ingest_from_a_bucket_writes_the_same_store(cells: Path, store: Path, bucket: Bucket, tmp_path: Path):
    address = bucket.put(cells, "cells.h5ad")
    ingest(address, tmp_path / "again", workers=2)
    local, remote = open_cells(store), open_cells(tmp_path / "again")
    assert list(remote.read_column("source").cat.categories) == [address]
    assert_same_cells(SelectedColumns(local), SelectedColumns(remote))


class SelectedColumns(CellsView):
    """Cells without the names of their sources."""

    def read_obs(self, start: int, stop: int) -> pd.DataFrame:
        return super().read_obs(start, stop).drop(columns="source")


def test_training_through_a_bad_network_gives_the_same_weights(
    store: Path, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for module in (requests, connections):
        monkeypatch.setattr(module, "LIMITS", requests.Limits(first_pause=0.01, longest_pause=0.05, silence=0.5))
    bad = ["500", "503", "refused", "reset", "broken off", "shorter", "whole", None]
    with run_proxy(bucket.endpoint) as proxy:
        monkeypatch.setenv("ATLASVI_STORAGE", f"endpoint={proxy.endpoint}")
        proxy.faults = np.random.default_rng(0).choice(np.array(bad, object), 1000).tolist()
        remote = train(bucket.put(store, "far"), tmp_path / "remote", batch_key="batch", epochs=2, settings=SMALL)
        assert 0 < len(proxy.faults) < 900
    assert_same_run(train(store, tmp_path / "local", batch_key="batch", epochs=2, settings=SMALL), remote)


def test_damage_and_change_in_a_bucket_are_noticed(store: Path, bucket: Bucket):
    address = bucket.put(store, "damaged")
    opened = open_cells(address)
    shard = to_place(address) / "X" / "data" / "c" / "0"
    content = bytearray(shard.read_bytes())
    content[10] ^= 255
    shard.write_bytes(content)
    with pytest.raises(StorageError, match=r"damaged/X/data/c/0 was replaced or changed while it was being read"):
        opened.read_block(0)
    with pytest.raises(DamagedChunkError, match=r"block 0 .*damaged/X/data/c/0: chunk 0 of data is damaged"):
        open_cells(address).read_block(0)
    bucket.remove("damaged/X/indices/c/0")
    with pytest.raises(SourceError, match=r"damaged/X/indices/c/0 is missing"):
        open_cells(address)


@pytest.fixture
def blocks(cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of many small blocks, in several shards."""
    monkeypatch.setattr(cell_store, "CHUNK", 32)
    monkeypatch.setattr(cell_store, "BLOCK_CHUNKS", 4)
    ingest(cells, tmp_path / "blocks", workers=1)
    assert len(open_cells(tmp_path / "blocks").block_starts) > 30
    return tmp_path / "blocks"


def assert_same_batches(one: BatchLoader, other: BatchLoader) -> None:
    for mine, theirs in zip(one, other, strict=True):
        assert torch.equal(mine.rows, theirs.rows)
        assert torch.equal(mine.indptr, theirs.indptr)
        assert torch.equal(mine.indices, theirs.indices)
        assert torch.equal(mine.counts, theirs.counts)


@pytest.mark.parametrize("ahead_bytes", [5_000, byte_files.AHEAD_BYTES])
def test_blocks_are_asked_for_ahead_once_and_nothing_of_it_stays(
    ahead_bytes: int, blocks: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(byte_files, "AHEAD_BYTES", ahead_bytes)
    data, local = open_cells(bucket.put(blocks, "blocks")), open_cells(blocks)
    epochs = []
    for rank in (0, 1):
        parts = [BatchLoader(cells, 32, seed=0, rank=rank, world_size=2) for cells in (local, data)]
        before = traffic.requests
        assert_same_batches(*parts)
        epochs.append(traffic.requests - before)
        gc.collect()
        assert byte_files.RangeAhead._n_bytes == 0
    assert 0 < epochs[-1] <= 4 * (len(data.block_starts) - 1)  # pointers, indices, counts; a block in two shards
    for _ in BatchLoader(data, 32, seed=0):
        break  # what was asked for is forgotten
    gc.collect()
    assert byte_files.RangeAhead._n_bytes == 0


@pytest.mark.parametrize(
    "layout", ["h5ad csr", "h5ad chunks", "tenx h5", "zarr2 csr", "zarr3 csr", "zarr3 shards", "collection"]
)
def test_cells_of_a_source_that_were_asked_for_ahead_are_not_asked_for_again(
    layout: str, bucket: Bucket, tmp_path: Path
):
    path = write_source(layout, tmp_path)
    address = bucket.put(path, path.name)
    local, remote = open_source(path), open_source(address)
    remote.read_narrow(0, 300)  # finds where everything is
    asked = remote.ask_ahead(20, 200)
    parts = [part for parts in asked for part in parts] if layout == "collection" else list(asked)
    wait([part.content for part in parts])
    before = traffic.requests
    for mine, theirs in zip(local.read_narrow(20, 200).to_csr(), remote.read_narrow(20, 200).to_csr()):
        np.testing.assert_array_equal(mine, theirs)
    assert parts
    assert traffic.requests == before
    del asked, parts
    assert_same_batches(BatchLoader(open_cells(path), 32, seed=0), BatchLoader(open_cells(address), 32, seed=0))
    gc.collect()
    assert byte_files.RangeAhead._n_bytes == 0


def test_the_second_epoch_asks_the_bucket_nothing_and_a_lost_cache_does_no_harm(
    blocks: Path, bucket: Bucket, cache: Path, caplog: pytest.LogCaptureFixture
):
    address = bucket.put(blocks, "blocks")
    loaders = BatchLoader(open_cells(blocks), 32, seed=0), BatchLoader(open_cells(address), 32, seed=0)
    assert_same_batches(*loaders)
    before = traffic.requests
    assert_same_batches(*loaders)
    assert traffic.requests == before
    again = BatchLoader(open_cells(address), 32, seed=0)
    list(again)
    assert traffic.requests <= before + 2  # another process lists the objects, to see that they are the same
    for piece in cache.rglob("*-*"):
        if piece.is_file():
            piece.write_bytes(piece.read_bytes()[:-1])  # each of them is damaged
    assert_same_batches(*loaders)
    shutil.rmtree(cache)
    assert_same_batches(*loaders)
    assert "nothing more is kept in the cache" in caplog.text


def test_as_few_threads_as_for_local_data_read_what_the_cache_has(
    blocks: Path, bucket: Bucket, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    n_threads: list[int] = []

    def start(n: int, **named: str) -> ThreadPoolExecutor:
        n_threads.append(n)
        return ThreadPoolExecutor(n, **named)

    monkeypatch.setattr("atlasvi.loaders.batches.loader.ThreadPoolExecutor", start)
    loader = BatchLoader(open_cells(bucket.put(blocks, "blocks")), 32, seed=0)
    for _ in range(3):  # the first epoch fills the cache, the second finds all of it there
        list(loader)
    shutil.rmtree(cache)
    for _ in range(2):
        list(loader)
    few = min(os.cpu_count() or 1, MOST_THREADS)
    assert n_threads == [REMOTE_THREADS, REMOTE_THREADS, few, few, REMOTE_THREADS]


def test_a_minified_store_in_a_bucket_gives_the_same_answers(store: Path, bucket: Bucket, tmp_path: Path):
    address = bucket.put(store, "to-minify")
    run = train(store, tmp_path / "run", batch_key="batch", epochs=1, settings=SMALL)
    minify(run, store, tmp_path / "mini")
    minify(run, address, tmp_path / "mini-of-bucket")
    local, remote = MinifiedStore(tmp_path / "mini"), MinifiedStore(bucket.put(tmp_path / "mini", "mini"))
    for other in (remote, MinifiedStore(tmp_path / "mini-of-bucket")):
        for mine, theirs in zip(local.read_latent(0, local.n_cells), other.read_latent(0, other.n_cells)):
            np.testing.assert_array_equal(mine, theirs)
        pd.testing.assert_index_equal(local.read_names(), other.read_names())
    rows = np.array([3, 50, 51, 190])
    np.testing.assert_array_equal(local.take_mean(rows), remote.take_mean(rows))
    np.testing.assert_array_equal(choose_cells(remote, ["c7", "c150"]), choose_cells(local, ["c7", "c150"]))
    for name, weights in local.model().state_dict().items():
        assert torch.equal(weights, remote.model().state_dict()[name])


def test_the_command_line_takes_an_address_and_the_options_of_its_bucket(
    store: Path, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    address = bucket.put(store, "described")
    for variable in ("ATLASVI_STORAGE", "ATLASVI_CACHE", "ATLASVI_CACHE_GB"):
        monkeypatch.setenv(variable, "")
    words = [
        "info",
        address,
        "--storage",
        f"endpoint={bucket.endpoint}",
        "--cache",
        str(tmp_path / "c"),
        "--cache-gb=1",
    ]
    answer = CliRunner().invoke(app, [*words, "--cache-gb=1"])
    assert answer.exit_code == 0, answer.exception
    assert any((tmp_path / "c").rglob("*-0"))
    assert "give both" in CliRunner().invoke(app, ["info", address, "--cache-gb", "2"]).output
    local = CliRunner().invoke(app, ["info", str(store)])
    assert answer.output.replace(address, "") == local.output.replace(str(store), "")
