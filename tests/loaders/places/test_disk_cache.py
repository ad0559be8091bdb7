"""What is kept on local disk: within its limit, by several processes, whatever is killed, damaged or full."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atlasvi.loaders.errors import OutputError, SourceError
from atlasvi.loaders.places import disk_cache
from atlasvi.loaders.places.disk_cache import BELOW, HEADER, DiskCache, find_cache, use_cache

SIZE = 1000 + HEADER.size + 4  # of a piece with its header and the sum of its only part


def content(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, 1000, np.uint8)


def read(cache: DiskCache, number: int) -> bool:
    """Whether a piece is there; if so, it is right."""
    out = np.empty(1000, np.uint8)
    if not cache.read(name(number), out):
        return False
    np.testing.assert_array_equal(out, content(number))
    return True


def name(number: int) -> str:
    return f"{number:02x}-object-0"


def held(cache: DiskCache) -> int:
    return sum(path.stat().st_size for path in cache.folder.rglob("*-object-*"))


def age(cache: DiskCache, number: int, seconds: float) -> None:
    """Let a piece have been used so many seconds ago."""
    then = time.time() - seconds
    os.utime(cache.folder / name(number)[:2] / name(number), (then, then))


def test_a_piece_that_was_written_is_read_and_another_is_not(tmp_path: Path):
    DiskCache(tmp_path / "new" / "cache", 10 * SIZE).write(name(0), content(0))
    cache = DiskCache(tmp_path / "new" / "cache", 10 * SIZE)
    assert read(cache, 0)
    assert not read(cache, 1)
    assert cache.folder.stat().st_mode & 0o777 == 0o700


def test_the_least_recently_used_pieces_make_room(tmp_path: Path):
    old = DiskCache(tmp_path, 4 * SIZE)
    for k in range(4):
        old.write(name(k), content(k))
        age(old, k, 100 - k)
    cache = DiskCache(tmp_path, 4 * SIZE)
    assert read(cache, 0)
    cache.write(name(4), content(4))
    assert [k for k in range(5) if read(cache, k)] == [0, 3, 4]  # some room more than was needed


def test_the_time_of_a_file_is_set_once_in_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = DiskCache(tmp_path, 10 * SIZE)
    cache.write(name(0), content(0))
    path = cache.folder / name(0)[:2] / name(0)
    for seconds, is_set in ((60.0, True), (60.0, False), (0.0, True)):
        monkeypatch.setattr(disk_cache, "NOTED_SECONDS", seconds)
        age(cache, 0, 1000)
        assert read(cache, 0)
        assert (time.time() - path.stat().st_mtime < 900) is is_set


def test_what_this_process_uses_is_not_replaced_by_what_it_reads_next(tmp_path: Path):
    """Else data that is larger than the cache, read in another order each epoch, would find little of itself."""
    cache = DiskCache(tmp_path, 10 * SIZE)
    hits = []
    for epoch in range(3):
        found = 0
        for k in np.random.default_rng(epoch).permutation(20).tolist():
            if not read(cache, k):
                cache.write(name(k), content(k))
            else:
                found += 1
        hits.append(found)
    assert hits == [0, 10, 10]


def test_what_nobody_used_for_a_day_makes_room_though_this_process_is_older(tmp_path: Path, monkeypatch):
    cache = DiskCache(tmp_path, 2 * SIZE)
    cache.began -= 10 * disk_cache.KEPT_SECONDS
    for k in range(2):
        cache.write(name(k), content(k))
    age(cache, 0, 2 * disk_cache.KEPT_SECONDS)
    cache.write(name(2), content(2))
    assert [read(cache, k) for k in range(3)] == [False, True, True]


def test_all_processes_together_stay_within_the_limit(tmp_path: Path):
    code = (
        "import sys; import numpy as np; from pathlib import Path\n"
        "from atlasvi.loaders.places.disk_cache import DiskCache\n"
        f"cache = DiskCache(Path(sys.argv[1]), {30 * SIZE})\n"
        "for k in range(100): cache.write(f'{k:02x}-object-{sys.argv[2]}', np.full(1000, k, np.uint8))\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, tmp_path, str(k % 2)]) for k in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    cache = DiskCache(tmp_path, 30 * SIZE)
    assert 20 * SIZE < held(cache) <= 30 * SIZE
    out = np.empty(1000, np.uint8)
    for path in cache.folder.rglob("*-object-*"):
        assert cache.read(path.name, out)
        assert set(out) == {int(path.name[:2], 16)}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.integers(1, 90), st.integers(0, 89), st.integers(1, 90), st.integers(0, 89))
def test_a_part_of_a_piece_is_read_and_checked_alone(
    tmp_path_factory: pytest.TempPathFactory, size: int, start: int, length: int, damaged: int
):
    whole = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    start, stop, damaged = min(start, size - 1), min(start + length, size), min(damaged, size - 1)
    with mock.patch.object(disk_cache, "PART", 8):
        cache = DiskCache(tmp_path_factory.mktemp("cache"), 10**6)
        cache.write("ab", whole)
        out = np.empty(stop - start, np.uint8)
        assert cache.read("ab", out, start, size)
        np.testing.assert_array_equal(out, whole[start:stop])
        path = cache.folder / "ab" / "ab"
        content = bytearray(path.read_bytes())
        content[len(content) - size + damaged] ^= 1
        path.write_bytes(content)
        is_touched = start // 8 <= damaged // 8 <= (stop - 1) // 8
        assert cache.read("ab", out, start, size) is not is_touched
        assert path.exists() is not is_touched


@pytest.mark.parametrize("damage", ["cut short", "a bit", "another piece", "empty", "foreign"])
def test_a_damaged_or_foreign_file_is_no_piece_and_is_removed(damage: str, tmp_path: Path):
    cache = DiskCache(tmp_path, 10 * SIZE)
    for k in range(2):
        cache.write(name(k), content(k))
    path = cache.folder / name(0)[:2] / name(0)
    whole = bytearray(path.read_bytes())
    if damage == "cut short":
        whole = whole[:-1]
    elif damage == "a bit":
        whole[500] ^= 1
    elif damage == "another piece":
        whole = bytearray((cache.folder / name(1)[:2] / name(1)).read_bytes())
    else:
        whole = bytearray(b"" if damage == "empty" else b"something else that somebody put here")
    path.write_bytes(whole)
    assert not read(cache, 0)
    assert not path.exists()
    cache.write(name(0), content(0))
    assert read(cache, 0)


@pytest.mark.parametrize("size", [b"", b"00000", b"lost", b"%020d" % 10**15])
def test_a_damaged_sum_of_sizes_is_found_again(size: bytes, tmp_path: Path):
    cache = DiskCache(tmp_path, 2 * SIZE)
    cache.write(name(0), content(0))
    (cache.folder / "size").write_bytes(size)
    for k in (1, 2):
        cache.write(name(k), content(k))
    assert read(cache, 1)
    if size != b"00000":  # a sum that is a number is believed, until the limit is reached
        assert held(cache) == 2 * SIZE


def test_a_process_that_was_killed_while_it_wrote_leaves_nothing_that_stays(tmp_path: Path):
    code = (
        "import os, signal, sys; import numpy as np; from pathlib import Path\n"
        "from atlasvi.loaders.places import disk_cache\n"
        "cache = disk_cache.DiskCache(Path(sys.argv[1]), 10**6)\n"
        "disk_cache.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "cache.write('00-object-0', np.zeros(1000, np.uint8))\n"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path]).returncode == -signal.SIGKILL
    cache = DiskCache(tmp_path, 3 * SIZE)
    (left,) = (cache.folder / "new").iterdir()
    assert not read(cache, 0)
    os.utime(left, (0, 0))
    for k in range(4):
        cache.write(name(k), content(k))
    assert not left.exists()
    assert held(cache) == 3 * SIZE


def test_a_lock_that_a_stopped_process_holds_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(disk_cache, "LOCK_SECONDS", 0.02)
    holder, cache = DiskCache(tmp_path, 10 * SIZE), DiskCache(tmp_path, 10 * SIZE)
    with holder._hold() as is_held:
        assert is_held
        cache.write(name(0), content(0))
        began = time.monotonic()
        for k in range(100):  # nor is it tried again and again
            cache.write(name(k), content(k))
        assert time.monotonic() - began < 1
    assert not read(cache, 0)
    cache._paused_until = 0
    cache.write(name(0), content(0))
    assert read(cache, 0)


def test_a_full_disk_ends_the_keeping_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    cache = DiskCache(tmp_path, 10 * SIZE)
    cache.write(name(0), content(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))  # the system refuses to write, as on a full disk
    try:
        for k in (1, 2):
            cache.write(name(k), content(k))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{tmp_path}: nothing more is kept in the cache (File too large); what is missing is read from the bucket"
    )
    assert read(cache, 0)
    assert not any((cache.folder / "new").iterdir())


def test_a_folder_that_was_removed_ends_the_keeping(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    cache = DiskCache(tmp_path, 10 * SIZE)
    shutil.rmtree(tmp_path / BELOW)
    cache.write(name(0), content(0))
    assert not read(cache, 0)
    assert "nothing more is kept in the cache (No such file or directory)" in caplog.text


def test_the_cache_of_the_process_is_given_by_python_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ATLASVI_CACHE", "")
    monkeypatch.setenv("ATLASVI_CACHE_GB", "")
    assert find_cache() is None
    use_cache(tmp_path / "a", 2)
    found = find_cache()
    assert found is not None
    assert (found.folder, found.limit) == (tmp_path / "a" / BELOW, 2_000_000_000)
    assert find_cache() is found
    monkeypatch.delenv("ATLASVI_CACHE_GB")
    assert find_cache().limit == 100_000_000_000
    use_cache(None)
    assert find_cache() is None
    for size in ("0", "-1", "many", "nan"):
        monkeypatch.setenv("ATLASVI_CACHE", str(tmp_path))
        monkeypatch.setenv("ATLASVI_CACHE_GB", size)
        with pytest.raises(SourceError, match=rf"The size of the cache is '{size}' \(--cache-gb, ATLASVI_CACHE_GB\)"):
            find_cache()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file: the cache can't be kept there \(.*\): give another folder"):
        use_cache(tmp_path / "file", 1)
