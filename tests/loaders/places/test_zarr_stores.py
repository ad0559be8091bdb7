from pathlib import Path

import numpy as np
import pytest
import zarr

from atlasvi.loaders.arrays.missing_chunks import find_missing_chunks
from atlasvi.loaders.errors import StorageError
from atlasvi.loaders.places.object_path import open_folder, to_place
from atlasvi.loaders.places.zarr_stores import find_folder, open_group
from tests.s3_server import Bucket


@pytest.fixture(params=[2, 3])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A group with an array in a group, in one of the formats; of format 3 it has shards."""
    root = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=request.param)
    shards = (40,) if request.param == 3 else None
    root.create_array("inside/numbers", shape=(100,), chunks=(10,), shards=shards, dtype="int32")[:] = np.arange(100)
    return tmp_path / "a.zarr"


def test_a_group_in_a_bucket_is_read_as_one_on_disk(bucket: Bucket, folder: Path):
    address = bucket.put(folder, folder.name)
    root = open_group(open_folder(address))
    assert sorted(root["inside"]) == ["numbers"]
    assert "nothing" not in root
    array = root["inside/numbers"]
    np.testing.assert_array_equal(array[15:71], np.arange(15, 71))
    assert find_missing_chunks(array)[1] == []
    assert find_folder(array) == to_place(f"{address}/inside/numbers")
    assert find_folder(open_group(folder)) == folder


def test_a_chunk_that_is_not_there_is_found_and_one_that_changed_is_refused(bucket: Bucket, folder: Path):
    address = bucket.put(folder, folder.name)
    chunks = sorted(file for file in (folder / "inside" / "numbers").rglob("*") if file.name.isdigit())
    bucket.remove(f"{folder.name}/{chunks[1].relative_to(folder)}")
    root = open_group(open_folder(address))
    assert find_missing_chunks(root["inside/numbers"])[1] == [1]
    (to_place(address) / str(chunks[0].relative_to(folder))).write_bytes(b"another")
    with pytest.raises(StorageError, match="was replaced or changed"):
        root["inside/numbers"][:]
