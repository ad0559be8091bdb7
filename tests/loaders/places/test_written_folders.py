"""Folders that appear in a bucket with the file that makes them something as their last one."""

import pytest

from atlasvi.loaders.errors import OutputError, StorageError
from atlasvi.loaders.outputs import remove_leftovers, write_folder_aside, write_new_folder
from atlasvi.loaders.places import written_folders
from atlasvi.loaders.places.object_path import to_place
from atlasvi.loaders.places.written_folders import sort_for_copy
from tests.s3_server import Bucket


def test_the_root_of_a_folder_is_copied_last():
    names = ["zarr.json", "X/zarr.json", "manifest.json", "names.index", "X/data/c/0", "obs/a"]
    assert sort_for_copy(names) == ["X/data/c/0", "X/zarr.json", "obs/a", "names.index", "manifest.json", "zarr.json"]
    assert sort_for_copy(["config.json", "checkpoints/step-0.pt"])[-1] == "config.json"
    assert sort_for_copy(["metrics.json", "_list.json", "model.pt"])[-1] == "metrics.json"


def test_a_new_folder_appears_at_the_end_and_after_an_error_nothing_is_left(bucket: Bucket):
    out = to_place(f"{bucket.url}/lung")
    with pytest.raises(ValueError, match="no"), write_new_folder(out) as scratch:
        (scratch / "result" / "config.json").write_bytes(b"{}")
        raise ValueError("no")
    assert bucket.get() == {}
    with write_new_folder(out) as scratch:
        (scratch / "result" / "config.json").write_bytes(b"{}")
        (scratch / "result" / "a" / "b").write_bytes(b"1")
        (scratch / "note").write_bytes(b"")
        assert not out.exists()
    assert bucket.get() == {"lung/config.json": b"{}", "lung/a/b": b"1"}
    with pytest.raises(OutputError, match=f"{out} exists already"), write_new_folder(out):
        pass


def test_what_was_left_beside_a_whole_folder_is_removed_by_who_writes_to_it(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    out = to_place(f"{bucket.url}/lung")

    def fail(*_: object) -> None:
        raise StorageError("the server is gone")

    with monkeypatch.context() as patch, write_new_folder(out) as scratch:
        (scratch / "result" / "config.json").write_bytes(b"{}")
        patch.setattr(written_folders, "remove_objects", fail)
    left = sorted(bucket.get())
    assert left == [".lung.unfinished/published.json", ".lung.unfinished/result/config.json", "lung/config.json"]
    remove_leftovers(out)  # what readers call: they may not be allowed to remove
    assert sorted(bucket.get()) == left
    remove_leftovers(out, in_bucket=True)
    assert bucket.get() == {"lung/config.json": b"{}"}


@pytest.mark.parametrize("address", ["s3://atlases", "https://lab.org/store"])
def test_a_place_that_can_be_no_folder_is_refused(address: str):
    refused = pytest.raises(OutputError, match=f"{address}: nothing can be written there")
    with refused, write_new_folder(to_place(address)):
        pass


def test_what_can_only_be_written_on_disk_says_so(bucket: Bucket):
    refused = pytest.raises(OutputError, match=r"this is written on local disk alone: give a path")
    with refused, write_folder_aside(f"{bucket.url}/tiles"):
        pass
    assert bucket.get() == {}
