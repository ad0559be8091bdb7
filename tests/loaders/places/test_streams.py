"""An object as a file of bytes, and HDF5 in a bucket."""

import gzip
from pathlib import Path

import h5py
import numpy as np
import pytest

from atlasvi.loaders.places import streams
from atlasvi.loaders.places.byte_files import RemoteFile
from atlasvi.loaders.places.hdf5_files import find_bytes, is_hdf5, open_hdf5
from atlasvi.loaders.places.object_path import to_place
from atlasvi.loaders.places.objects import traffic
from atlasvi.loaders.places.streams import ObjectStream
from tests.s3_server import Bucket


@pytest.fixture
def content() -> bytes:
    return np.random.default_rng(0).integers(0, 256, 50_001, np.uint8).tobytes()


def test_it_is_read_at_any_place_and_from_its_beginning_to_its_end(
    bucket: Bucket, tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(streams, "PAGE_BYTES", 1000)
    monkeypatch.setattr(streams, "PIECE_BYTES", 4000)
    monkeypatch.setattr(streams, "KEPT_BYTES", 12_000)
    (tmp_path / "a").write_bytes(content)
    file = ObjectStream(to_place(bucket.put(tmp_path / "a", "a")))
    for at, n in ((999, 2), (49_990, 100), (0, 3500), (50_001, 5)):
        file.seek(at)
        assert file.read(n) == content[at : at + n]
    file.seek(-1, 2)
    assert file.tell() == 50_000
    file.seek(0)
    assert b"".join(iter(lambda: file.read(700), b"")) == content
    assert sum(stop - first for first, (stop, _) in file._runs.items()) <= 12


def test_what_is_read_from_beginning_to_end_is_asked_for_once(
    bucket: Bucket, tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(streams, "PAGE_BYTES", 10_000)
    (tmp_path / "a.gz").write_bytes(gzip.compress(content, 0))
    place, before = to_place(bucket.put(tmp_path / "a.gz", "a.gz")), traffic.requests
    with place.open("rb") as file, gzip.open(file) as text:
        assert text.read() == content
    assert traffic.requests - before <= 1 + 6, "one for its size, and one for each page"


def test_hdf5_is_recognised_and_read(bucket: Bucket, tmp_path: Path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["numbers"] = np.arange(1000)
    place = to_place(bucket.put(tmp_path / "a.h5", "a.h5"))
    assert is_hdf5(place)
    with open_hdf5(place) as file:
        np.testing.assert_array_equal(file["numbers"][10:20], np.arange(10, 20))
        direct = find_bytes(file["numbers"])
        assert isinstance(direct, RemoteFile), "its bytes can be read beside the library"
    place.write_bytes(b"text")
    assert not is_hdf5(place)
    assert not is_hdf5(place / "nothing")
