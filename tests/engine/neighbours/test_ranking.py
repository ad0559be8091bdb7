import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlasvi.engine.neighbours.ranking import make_heaps, replace_worst, run_shares, sort_heaps


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 12))
def test_a_heap_holds_the_smallest_results_equal_ones_by_index(found: list[int], k: int):
    distances, cells = make_heaps(1, k)
    for cell, distance in sorted(enumerate(found), key=lambda pair: hash(pair)):
        if (distance, cell) < (distances[0, 0], cells[0, 0]):
            replace_worst(distances[0], cells[0], np.float32(distance), cell)
    distances, cells = sort_heaps(distances, cells)
    expected = sorted((distance, cell) for cell, distance in enumerate(found))[:k]
    assert list(zip(distances[0], cells[0]))[: len(expected)] == expected
    assert (cells[0, len(expected) :] == -1).all()


def test_shares_cover_all_once_on_as_many_threads_as_allowed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("atlasvi.engine.neighbours.ranking.count_threads", lambda: 3)
    seen, threads = np.zeros(10, int), set()
    both = threading.Barrier(3)

    def work(start: int, stop: int) -> None:
        seen[start:stop] += 1
        threads.add(threading.get_ident())
        both.wait(10)

    run_shares(work, 10)
    assert (seen == 1).all()
    assert len(threads) == 3


def test_an_error_in_a_share_is_raised(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("atlasvi.engine.neighbours.ranking.count_threads", lambda: 2)
    with pytest.raises(ZeroDivisionError):
        run_shares(lambda start, stop: 1 // start, 4)
