"""Local files and folders that are sent to a bucket at the end."""

import errno
from pathlib import Path

import pytest

from atlasvi.loaders.errors import OutputError
from atlasvi.loaders.places.object_path import to_place
from atlasvi.loaders.places.staging import write_local_file, write_local_folder
from tests.s3_server import Bucket


def write(place) -> None:
    with write_local_folder(place / "folder") as folder:
        (folder / "inside").mkdir()
        (folder / "inside" / "a").write_bytes(b"1")
        (folder / "b").write_bytes(b"2")
    with write_local_file(place / "file") as path:
        path.write_bytes(b"3")


def test_what_is_written_to_a_local_path_arrives_in_the_bucket(bucket: Bucket, tmp_path: Path):
    write(to_place(bucket.url))
    write(tmp_path)
    expected = {"folder/inside/a": b"1", "folder/b": b"2", "file": b"3"}
    assert bucket.get() == expected == {name: (tmp_path / name).read_bytes() for name in expected}


def test_a_full_disk_of_temporary_files_is_named(bucket: Bucket):
    full = OSError(errno.ENOSPC, "No space left on device")
    refused = pytest.raises(OutputError, match=f"{bucket.url}/a: the folder for temporary files, .* is full")
    with refused, write_local_file(to_place(f"{bucket.url}/a")):
        raise full
    with pytest.raises(PermissionError), write_local_file(to_place(f"{bucket.url}/a")):
        raise PermissionError


def test_after_an_error_nothing_is_sent(bucket: Bucket):
    with pytest.raises(ValueError, match="no"), write_local_folder(to_place(f"{bucket.url}/folder")) as folder:
        (folder / "a").write_bytes(b"1")
        raise ValueError("no")
    assert bucket.get() == {}
    assert not folder.exists()
