"""Parts of objects through the disk cache: right to the byte, and from the bucket once."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atlasvi.loaders.errors import StorageError
from atlasvi.loaders.places import cached_parts
from atlasvi.loaders.places.byte_files import RemoteFile
from atlasvi.loaders.places.cached_parts import CachedObject, name_object
from atlasvi.loaders.places.disk_cache import DiskCache, find_cache, use_cache
from atlasvi.loaders.places.object_path import ObjectPath, open_folder, to_place
from atlasvi.loaders.places.objects import traffic
from tests.s3_server import Bucket


@pytest.fixture
def used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DiskCache:
    """A cache that this process uses."""
    monkeypatch.setenv("ATLASVI_CACHE", "")
    monkeypatch.setenv("ATLASVI_CACHE_GB", "")
    use_cache(tmp_path / "cache", 1)
    cache = find_cache()
    assert cache is not None
    return cache


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.integers(1, 90), st.lists(st.tuples(st.integers(0, 89), st.integers(1, 60)), min_size=1, max_size=8))
def test_every_range_is_right_and_no_byte_is_read_from_the_bucket_twice(
    tmp_path_factory: pytest.TempPathFactory, size: int, parts: list[tuple[int, int]]
):
    cache, whole = DiskCache(tmp_path_factory.mktemp("cache"), 10**6), np.random.default_rng(0).bytes(size)
    read = np.zeros(size, int)

    def fetch(low: int, high: int) -> bytes:
        read[low:high] += 1
        return whole[low:high]

    with mock.patch.object(cached_parts, "PIECE", 8):
        for start, length in parts:
            start, stop = min(start, size - 1), min(start + length, size)
            kept = list[int]()
            cached = CachedObject(cache, "ab", size, fetch, kept.append)
            missing, before = cached.find_missing(start, stop), read.sum()
            assert (cached.read_kept(start, stop) is None) == bool(missing)
            kept.clear()
            assert cached.read(start, stop).tobytes() == whole[start:stop]
            assert read.sum() - before == sum(high - low for low, high in missing)
            assert kept == [max(stop - start - (read.sum() - before), 0)]
            assert cached.find_missing(start, stop) == []
            assert cached.read_kept(start, stop).tobytes() == whole[start:stop]
            assert kept[1:] == [stop - start]
    assert read.max() == 1


def test_threads_that_want_the_same_pieces_read_them_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cached_parts, "PIECE", 8)
    cache, fetched, barrier = DiskCache(tmp_path, 10**6), [], threading.Barrier(2, timeout=10)

    def fetch(low: int, high: int) -> bytes:
        fetched.append((low, high))
        if len(fetched) <= 2:
            barrier.wait()  # both threads are here at the same time, with different pieces
        return bytes(range(low, high))

    cached = CachedObject(cache, "ab", 24, fetch, lambda n_bytes: None)
    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(cached.read, 0, 12)
        while not fetched:
            pass
        other = threads.submit(cached.read, 8, 24)
        assert one.result().tobytes() == bytes(range(12))
        assert other.result().tobytes() == bytes(range(8, 24))
    assert fetched == [(0, 16), (16, 24)]


def test_an_error_reaches_all_who_wait_and_the_next_one_asks_again(tmp_path: Path):
    cache = DiskCache(tmp_path, 10**9)

    def fail(low: int, high: int) -> bytes:
        raise StorageError("no answer")

    for _ in range(2):
        with pytest.raises(StorageError, match="no answer"):
            CachedObject(cache, "ab", 3, fail, print).read(0, 3)
    assert CachedObject(cache, "ab", 3, lambda *_: b"abc", print).read(0, 3).tobytes() == b"abc"


def test_all_that_another_object_differs_in_is_in_the_name():
    names = {name_object(*words) for words in (("a", "b"), ("ab", ""), ("a", "c"), ("a", "b", 1))}
    assert len(names) == 4


def put(bucket: Bucket, tmp_path: Path, content: bytes) -> ObjectPath:
    (tmp_path / "object").write_bytes(content)
    place = to_place(bucket.put(tmp_path / "object", "folder/object"))
    assert isinstance(place, ObjectPath)
    return place


def read_all(place: ObjectPath) -> bytes:
    file = RemoteFile(place)
    out = np.empty(file.size, np.uint8)
    assert file.read_into(0, out)
    return out.tobytes()


def test_an_object_is_read_from_the_bucket_once_and_a_replaced_one_is_read_anew(
    bucket: Bucket, tmp_path: Path, used: DiskCache
):
    first, second = (np.random.default_rng(k).bytes(3 * 2**20 + 5) for k in range(2))
    place = put(bucket, tmp_path, first)
    traffic.n_bytes = traffic.kept_bytes = 0
    assert read_all(place) == read_all(place) == first
    assert (traffic.n_bytes, traffic.kept_bytes) == (len(first), len(first))
    put(bucket, tmp_path, second)
    assert read_all(place) == second
    assert traffic.n_bytes == 2 * len(first)


def test_small_objects_of_an_opened_folder_are_kept_too(bucket: Bucket, tmp_path: Path, used: DiskCache):
    put(bucket, tmp_path, b"{}")
    for _ in range(2):
        traffic.requests = 0
        folder = open_folder(f"{bucket.url}/folder")
        assert (folder / "object").read_bytes() == b"{}"
    assert traffic.requests == 1  # the list of the objects, which says their versions


def test_damage_in_the_cache_is_read_from_the_bucket_again(bucket: Bucket, tmp_path: Path, used: DiskCache):
    n_bytes = 2 * cached_parts.PIECE + 7
    place = put(bucket, tmp_path, bytes(n_bytes))
    read_all(place)
    pieces = [path for path in used.folder.rglob("*-*") if path.is_file()]
    assert len(pieces) == 3
    for path in pieces:
        path.write_bytes(path.read_bytes().replace(b"\0" * 7, b"\1" * 7))
    assert read_all(place) == bytes(n_bytes)


def test_an_object_without_an_etag_is_not_kept(
    bucket: Bucket, tmp_path: Path, used: DiskCache, monkeypatch: pytest.MonkeyPatch
):
    """Its version is the second of its last change, in which it may have changed twice."""
    place = put(bucket, tmp_path, b"content")
    dated = replace(place.stat(), is_tag=False)
    monkeypatch.setattr(ObjectPath, "stat", lambda _: dated)
    monkeypatch.setattr("atlasvi.loaders.places.byte_files.read_part", lambda *_: b"content")
    assert read_all(place) == b"content"
    assert not [path for path in used.folder.rglob("*-*") if path.is_file()]
