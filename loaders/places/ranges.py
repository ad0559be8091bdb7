"""Ranges of bytes put together for few requests, and split for several at a time: functions of plain numbers."""

import itertools
from collections.abc import Iterator, Sequence

NEAR_BYTES = 2**16  # between two parts: to read and drop them takes less time than another request


def merge_ranges(
    ranges: Sequence[tuple[int, int]], longest: int, near: int = NEAR_BYTES
) -> Iterator[tuple[int, int, list[int]]]:
    """(start, stop, indices of the members) of runs of ranges [start, stop) that lie near each other.

    A run is not longer than `longest`, unless it is one range. Empty ranges are left out.
    """
    order = sorted((k for k, (start, stop) in enumerate(ranges) if stop > start), key=lambda k: ranges[k])
    run: list[int] = []
    begin = end = 0
    for k in order:
        start, stop = ranges[k]
        if run and start - end <= near and max(stop, end) - begin <= longest:
            run.append(k)
            end = max(stop, end)
            continue
        if run:
            yield begin, end, run
        run, begin, end = [k], start, stop
    if run:
        yield begin, end, run


def split_range(start: int, stop: int, longest: int, step: int = 1) -> list[tuple[int, int]]:
    """A range as ranges of nearly equal length, none longer than `longest`.

    All but the last have multiples of `step` as their lengths; so has `longest`.
    """
    n = max(-(-(stop - start) // longest), 1)
    edges = [min(start + -(-(stop - start) * k // (n * step)) * step, stop) for k in range(n + 1)]
    return [(low, high) for low, high in itertools.pairwise(edges) if low < high]
