"""What a long piece of work takes, from doing a little of it."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from atlasvi.loaders.errors import OutputError
from atlasvi.loaders.work_estimate import check_room, time_parts


def test_parts_are_done_until_the_time_is_over_and_the_first_is_not_timed():
    def work() -> Iterator[int]:
        time.sleep(0.2)  # what is compiled
        yield 10
        for _ in range(1000):
            time.sleep(0.01)
            yield 10

    n_cells, per_cell = time_parts(work(), seconds=0.3)
    assert 20 <= n_cells <= 120
    assert 0.001 <= per_cell < 0.01
    assert time_parts(iter([5]), seconds=0)[0] == 5


def test_a_disk_that_is_too_small_is_an_error_before_the_work(tmp_path: Path):
    assert check_room(tmp_path / "no" / "such" / "folder", 1) > 1
    with pytest.raises(OutputError, match=r"needs about 1,000,000,000.0 GB, and its disk has .* GB free"):
        check_room(tmp_path / "out", 10**18)
    assert list(tmp_path.iterdir()) == []
    assert check_room("s3://bucket/atlas.store", 10**18) == 0
