from pathlib import Path

import numpy as np

from atlasvi.loaders.ingestion import buckets as module
from atlasvi.loaders.ingestion.buckets import Buckets


def test_records_come_back_joined_with_text_and_missing_text(tmp_path: Path):
    buckets = Buckets(tmp_path / "b")
    buckets.append(3, {"x": np.array([1, 2], np.uint8), "name": np.array(["a", None], object)})
    buckets.append(3, {"x": np.array([300], np.uint16), "name": np.array(["naïve ✓"], object)})
    got = buckets.read(3)
    assert got["x"].tolist() == [1, 2, 300]
    assert got["name"].tolist() == ["a", None, "naïve ✓"]
    assert buckets.read(4) == {}


def test_arrays_of_two_axes_keep_their_shape(tmp_path: Path):
    buckets = Buckets(tmp_path / "b")
    z = np.arange(6, dtype=np.float32).reshape(3, 2)
    buckets.append(0, {"z": z})
    buckets.append(0, {"z": z[:0]})
    assert np.array_equal(buckets.read(0)["z"], z)


def test_what_does_not_fit_the_buffer_goes_to_disk(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "BUFFER_BYTES", 100)
    buckets = Buckets(tmp_path / "b")
    for k in range(50):
        buckets.append(k % 2, {"x": np.full(10, k)})
    assert sum(file.stat().st_size for file in (tmp_path / "b").iterdir()) > 1000
    assert buckets.read(1)["x"][::10].tolist() == list(range(1, 50, 2))
    buckets.remove()
    assert not (tmp_path / "b").exists()
