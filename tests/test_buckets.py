"""Data in a bucket gives what the same data on disk gives: cells, training, minified stores and their answers."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from atlasvi.engine.cli.commands import app
from atlasvi.engine.minified.minified_store import MinifiedStore
from atlasvi.engine.minified.minify import minify
from atlasvi.engine.queries.cell_choice import choose_cells
from atlasvi.engine.training.train import train
from atlasvi.loaders.cells.cells_protocol import Cells
from atlasvi.loaders.cells.open_cells import open_cells
from atlasvi.loaders.errors import DamagedChunkError, SourceError, StorageError
from atlasvi.loaders.ingestion.ingest import ingest
from atlasvi.loaders.manifest import read_json
from atlasvi.loaders.places.object_path import to_place
from tests.engine.training.small_runs import SMALL, assert_same_run, write_cells
from tests.s3_server import Bucket


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    return write_cells(tmp_path / "cells.h5ad")


@pytest.fixture
def store(cells: Path, tmp_path: Path) -> Path:
    ingest(cells, tmp_path / "store", workers=1)
    return tmp_path / "store"


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


def test_training_from_a_bucket_gives_the_weights_of_training_from_disk(store: Path, bucket: Bucket, tmp_path: Path):
    address = bucket.put(store, "trained")
    runs = [
        train(data, tmp_path / name, batch_key="batch", epochs=2, settings=SMALL)
        for data, name in ((store, "local"), (address, "remote"))
    ]
    assert_same_run(*runs)
    kept = read_json(tmp_path / "remote" / "config.json")["data"]
    assert kept == {"path": address, "endpoint": bucket.endpoint}, "the endpoint is kept, credentials are not"


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
    store: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    address = bucket.put(store, "described")
    monkeypatch.setenv("ATLASVI_STORAGE", "")
    answer = CliRunner().invoke(app, ["info", address, "--storage", f"endpoint={bucket.endpoint}"])
    assert answer.exit_code == 0, answer.exception
    local = CliRunner().invoke(app, ["info", str(store)])
    assert answer.output.replace(address, "") == local.output.replace(str(store), "")
