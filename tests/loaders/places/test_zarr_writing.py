"""Zarr groups that are written to a bucket."""

import zlib
from pathlib import Path

import numpy as np
import zarr

from atlasvi.loaders.places.object_path import to_place
from atlasvi.loaders.places.objects import traffic
from atlasvi.loaders.places.zarr_stores import open_group
from atlasvi.loaders.places.zarr_writing import create_group, open_to_write, take_written
from tests.s3_server import Bucket


def test_a_group_is_written_to_a_bucket_as_to_disk(bucket: Bucket, tmp_path: Path):
    place = to_place(f"{bucket.url}/a.zarr")
    (place / "left").write_bytes(b"of another")
    for root in (create_group(place), create_group(tmp_path / "a.zarr")):
        root.attrs["kind"] = "test"
        array = root.create_group("inside").create_array("n", shape=(10,), chunks=(4,), dtype="int64")
        array[:] = np.arange(10)
        again = open_to_write(place if root.store_path.path == "" and take_written(root) else tmp_path / "a.zarr")
        again["inside/n"][4:8] = 7
    files = {
        str(path.relative_to(tmp_path / "a.zarr")): path.read_bytes()
        for path in (tmp_path / "a.zarr").rglob("*")
        if path.is_file()
    }
    assert bucket.get("a.zarr") == files
    np.testing.assert_array_equal(open_group(place)["inside/n"][:], [0, 1, 2, 3, 7, 7, 7, 7, 8, 9])


def test_written_objects_are_listed_once_with_their_checksums_and_metadata_is_asked_for_once(bucket: Bucket):
    place = to_place(f"{bucket.url}/a.zarr")
    root = create_group(place)
    array = root.create_array("n", shape=(8,), chunks=(4,), dtype="int64")
    assert sorted(take_written(root)) == ["n/zarr.json", "zarr.json"]
    before = traffic.requests
    array[:] = np.arange(8)
    assert root["n"].shape == (8,)
    assert traffic.requests == before + 2
    chunk = bucket.get("a.zarr")["n/c/1"]
    assert take_written(root)["n/c/1"] == (len(chunk), f"crc32:{zlib.crc32(chunk):08x}")
    assert take_written(root) == {}
    assert take_written(zarr.group()) == {}
