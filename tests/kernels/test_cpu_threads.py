import threading

import pytest

from atlasvi.kernels.cpu_threads import run_on_threads


@pytest.mark.parametrize(("n", "n_threads"), [(10, 3), (2, 4), (7, 1), (0, 3)])
def test_equal_parts_cover_all_once(n: int, n_threads: int):
    parts: list[tuple[int, int, int]] = []
    run_on_threads(lambda *part: parts.append(part), n, n_threads)
    parts.sort()
    assert [k for k, _, _ in parts] == list(range(max(min(n, n_threads), 1)))
    assert [k for _, start, stop in parts for k in range(start, stop)] == list(range(n))
    sizes = [stop - start for _, start, stop in parts]
    assert max(sizes) - min(sizes) <= 1


def test_parts_run_at_the_same_time_and_an_error_in_one_is_raised():
    both = threading.Barrier(2, timeout=10)  # each part waits until the other has come

    def fail(thread: int, start: int, stop: int) -> None:
        both.wait()
        if thread == 1:
            raise ValueError("the second part")

    with pytest.raises(ValueError, match="the second part"):
        run_on_threads(fail, 2, 2)
