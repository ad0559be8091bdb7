"""Objects that are written, copied and removed."""

from pathlib import Path

import pytest

from atlasvi.loaders.errors import SourceError, StorageError
from atlasvi.loaders.places import written_objects
from atlasvi.loaders.places.object_path import ObjectPath, to_place
from atlasvi.loaders.places.written_objects import copy_objects, lift_folder, remove_objects, write_object
from tests.faulty_proxy import run_proxy
from tests.s3_server import Bucket


def place_of(bucket: Bucket, name: str) -> ObjectPath:
    place = to_place(f"{bucket.url}/{name}")
    assert isinstance(place, ObjectPath)
    return place


def test_content_and_files_are_written_whole_and_removed(bucket: Bucket, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(written_objects, "PART_BYTES", 2**20 * 5)
    large = bytes(range(256)) * 2**15  # in parts
    (tmp_path / "file").write_bytes(large)
    for name, content in (("a", b"one"), ("b/c", memoryview(b"two")), ("b/d", tmp_path / "file"), ("e", b"")):
        place = place_of(bucket, name)
        write_object(place.address, place.storage, content)
    assert bucket.get() == {"a": b"one", "b/c": b"two", "b/d": large, "e": b""}
    place_of(bucket, "a").write_bytes(b"another")
    place_of(bucket, "e").unlink()
    top = place_of(bucket, "")
    remove_objects(top.address, top.storage, ["b/d", "not/there"])
    assert bucket.get() == {"a": b"another", "b/c": b"two"}
    remove_objects(top.address, top.storage)
    assert bucket.get() == {}


def test_objects_are_copied_and_an_inner_folder_takes_the_place_of_the_outer(bucket: Bucket):
    for name in ("zarr.json", "mask/c/0", "values/zarr.json", "values/c/0", "values/values/c"):
        (place_of(bucket, "column") / name).write_bytes(name.encode())
    column, other = place_of(bucket, "column"), place_of(bucket, "other")
    copy_objects(column.address, other.address, other.storage, ["zarr.json", "values/c/0"])
    lift_folder(column.address, "values", column.storage)
    assert bucket.get("other") == {"zarr.json": b"zarr.json", "values/c/0": b"values/c/0"}
    inner = {"zarr.json": b"values/zarr.json", "c/0": b"values/c/0", "values/c": b"values/values/c"}
    assert bucket.get("column") == inner


def test_where_nothing_can_be_written_a_sentence_says_so(bucket: Bucket, monkeypatch: pytest.MonkeyPatch):
    with run_proxy(bucket.endpoint) as proxy:
        monkeypatch.setenv("ATLASVI_STORAGE", f"endpoint={proxy.endpoint}")
        proxy.faults = ["denied"]
        with pytest.raises(StorageError, match=rf"^{bucket.url}/a: no permission to write it \(AccessDenied\): check"):
            place_of(bucket, "a").write_bytes(b"")
    with pytest.raises(SourceError, match="nothing is written to a web server"):
        to_place("https://lab.org/a").write_bytes(b"")
    with pytest.raises(SourceError, match="names a bucket and no object"):
        to_place("s3://atlases").write_bytes(b"")
