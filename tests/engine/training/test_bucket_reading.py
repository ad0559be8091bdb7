"""What `plan` says of a bucket."""

from pathlib import Path

import pytest

from atlasvi.engine.training.bucket_reading import BucketReading, measure_bucket_reading
from atlasvi.engine.training.epoch_estimate import describe_plan, plan_epoch_time
from atlasvi.loaders.cells.open_cells import open_cells
from atlasvi.loaders.ingestion.ingest import ingest
from atlasvi.loaders.places.disk_cache import use_cache
from tests.engine.training.small_runs import SMALL, write_cells
from tests.s3_server import Bucket


@pytest.fixture
def store(tmp_path: Path) -> Path:
    ingest(write_cells(tmp_path / "cells.h5ad"), tmp_path / "store", workers=1)
    return tmp_path / "store"


def test_a_plan_names_the_bucket_and_what_an_epoch_asks_of_it(store: Path, bucket: Bucket):
    plan = plan_epoch_time(bucket.put(store, "store"), 1, batch_key="batch", settings=SMALL, seconds=0.4)
    reading = plan.bucket
    assert reading is not None
    x = sum(file.stat().st_size for file in (store / "X").rglob("c/*"))
    assert reading.n_bytes < 2 * x  # training and validation, without the indices of the shards
    assert reading.requests == 6  # of each of them: pointers, indices and counts of the one block
    said = list(describe_plan(plan))
    assert any(line.startswith("All ranks read 0.") and "an epoch from s3://atlases, in" in line for line in said)


def test_what_the_cache_has_is_not_asked_for(store: Path, bucket: Bucket, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("ATLASVI_CACHE", "")
    monkeypatch.setenv("ATLASVI_CACHE_GB", "")
    use_cache(tmp_path / "cache", 1)
    reading = measure_bucket_reading(open_cells(bucket.put(store, "store")), 1, 1)
    assert reading is not None
    assert (reading.requests, reading.kept) == (0, 1)  # the first block was read before it was counted
    assert "100% of it from the cache of this machine" in reading.describe()


def test_ranks_read_a_block_that_a_minibatch_is_cut_in_each(store: Path, bucket: Bucket):
    data = open_cells(bucket.put(store, "store"))
    one, four = (measure_bucket_reading(data, n, 1) for n in (1, 4))
    assert one is not None
    assert four is not None
    assert four.requests == (data.group_blocks + 3) / data.group_blocks * one.requests


def test_data_on_disk_asks_no_bucket(store: Path):
    assert measure_bucket_reading(open_cells(store), 1, 1) is None


def test_sizes_are_said_in_units_that_fit():
    assert BucketReading("gs://a", 1234.4, 5.67e9, 0).describe() == (
        "All ranks read 5.7 GB an epoch from gs://a, in about 1,234 requests."
    )
