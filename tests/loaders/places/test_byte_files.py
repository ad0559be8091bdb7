import os
import resource
from pathlib import Path

import numpy as np

from atlasvi.loaders.places.byte_files import read_into, share_of_files


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
