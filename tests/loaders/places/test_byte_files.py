import os
import resource
from pathlib import Path

import numpy as np
import pytest

from atlasvi.loaders.errors import StorageError
from atlasvi.loaders.places import byte_files
from atlasvi.loaders.places.byte_files import (
    ByteFile,
    RangeAhead,
    RemoteFile,
    open_file,
    read_into,
    share_of_files,
)
from atlasvi.loaders.places.object_path import to_place
from atlasvi.loaders.places.objects import traffic
from tests.s3_server import Bucket


def test_bytes_are_read_also_where_the_system_gives_them_piece_by_piece(tmp_path: Path, monkeypatch):
    values = np.arange(1_000, dtype=np.int32)
    values.tofile(tmp_path / "a")
    read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda handle, parts, offset: read(handle, [parts[0][:999]], offset))
    out = np.zeros(500, np.int32)
    with open(tmp_path / "a", "rb") as file:
        assert read_into(file.fileno(), 4 * 300, out)
        assert np.array_equal(out, values[300:800])
        assert not read_into(file.fileno(), 4 * 900, out)
        assert read_into(file.fileno(), 10**6, out[:0])


def test_fewer_files_are_kept_open_where_a_process_may_open_few(monkeypatch):
    for limit, most in ((1024, 64), (256, 64), (128, 32), (36, 9), (3, 1), (resource.RLIM_INFINITY, 64)):
        monkeypatch.setattr(resource, "getrlimit", lambda which, limit=limit: (limit, limit))
        assert share_of_files(4, 64) == most


@pytest.fixture(params=["disk", "bucket"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> ByteFile:
    """A file of the numbers 0 to 99,999 as uint32."""
    file = tmp_path / "numbers"
    file.write_bytes(np.arange(100_000, dtype=np.uint32).tobytes())
    if request.param == "disk":
        return open_file(file)
    return open_file(to_place(request.getfixturevalue("bucket").put(file, "numbers")))


def test_parts_are_read_by_position_wherever_the_file_is(opened: ByteFile, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(byte_files, "PIECE_BYTES", 100_000)
    assert opened.size == 400_000
    assert opened.is_current()
    outs = [np.empty(n, np.uint32) for n in (60_000, 10, 0, 5, 10)]
    starts = (30_000, 99_990, 0, 70_000, 70_003)
    assert opened.read_parts([4 * start for start in starts], outs) is None
    for start, out in zip(starts, outs):
        np.testing.assert_array_equal(out, np.arange(start, start + len(out)))
    assert opened.read_parts([0, 4 * 99_998], [outs[1], outs[3]]) == 1, "the file ends before the second part does"
    assert not opened.read_into(4 * 99_998, outs[3])


def test_near_parts_of_an_object_are_one_request_and_long_ones_several(bucket: Bucket, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(byte_files, "PIECE_BYTES", 100_000)
    (tmp_path / "zeros").write_bytes(bytes(400_000))
    file = open_file(to_place(bucket.put(tmp_path / "zeros", "zeros")))
    before = traffic.requests
    file.read_parts([0, 2000, 90_000], [np.empty(10, np.uint8) for _ in range(3)])
    assert traffic.requests - before == 2
    file.read_into(0, np.empty(400_000, np.uint8))
    assert traffic.requests - before == 6


def test_an_object_that_is_replaced_under_the_reader_is_noticed(bucket: Bucket, tmp_path: Path):
    (tmp_path / "a").write_bytes(bytes(100))
    place = to_place(bucket.put(tmp_path / "a", "a"))
    file = open_file(place)
    place.write_bytes(bytes(99) + b"1")
    with pytest.raises(StorageError, match=r"s3://atlases/\d+/a was replaced or changed"):
        file.read_into(0, np.empty(100, np.uint8))


def test_a_local_file_that_is_replaced_or_gone_is_noticed(tmp_path: Path):
    (tmp_path / "a").write_bytes(bytes(100))
    file = open_file(tmp_path / "a")
    (tmp_path / "b").write_bytes(bytes(100))
    (tmp_path / "b").rename(tmp_path / "a")
    assert not file.is_current()
    (tmp_path / "a").unlink()
    with pytest.raises(FileNotFoundError):
        file.is_current()


def test_bytes_that_two_readers_ask_for_ahead_come_once_and_stay_until_both_have_let_go(bucket: Bucket, tmp_path: Path):
    content = np.random.default_rng(0).bytes(1000)
    (tmp_path / "a").write_bytes(content)
    file = open_file(to_place(bucket.put(tmp_path / "a", "a")))
    assert isinstance(file, RemoteFile)
    before = traffic.n_bytes
    first = file.ask_ahead(0, 600)
    second = file.ask_ahead(400, 1000)
    assert [(part.start, part.stop) for part in first] == [(0, 600)]
    assert {(part.start, part.stop) for part in second} == {(0, 600), (600, 1000)}
    del first
    out = np.empty(1000, np.uint8)
    assert file.read_into(0, out)
    assert out.tobytes() == content
    assert traffic.n_bytes - before == 1000
    del second
    assert RangeAhead._n_bytes == 0
