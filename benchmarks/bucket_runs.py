"""Our side of benchmarks/buckets.py: epochs of one path or address in a process, printed as a line of JSON.

usage: python bucket_runs.py PATH SECONDS
"""

import sys
from collections.abc import Iterator

from loader_runs import open_loader
from measured_process import Epoch, measure_epochs, say

from atlasvi.loaders.places.objects import traffic


def open_epochs(path: str, counted: list[dict[str, int]]) -> Epoch:
    """What measures epochs of `path`; `counted` gets the requests and bytes of each."""
    begin = dict(vars(traffic))  # the first epoch has the opening, too
    loader = open_loader(path)

    def start_epoch() -> Iterator[int]:
        nonlocal begin
        for batch in loader:
            yield len(batch)
        counted.append({name: value - begin[name] for name, value in vars(traffic).items()})
        begin = dict(vars(traffic))

    return start_epoch


def main(path: str, seconds: str) -> None:
    """Measure, and print the figures."""
    if "soma" in path:
        import tiledbsoma  # noqa: F401
    counted: list[dict[str, int]] = []
    figures = measure_epochs(lambda: open_epochs(path, counted), float(seconds))
    for epoch, count in zip([figures["warm_up"], *figures["epochs"]], counted, strict=True):
        epoch |= {} if "soma" in path else count  # TileDB's requests are its own
    say(figures)


if __name__ == "__main__":
    main(*sys.argv[1:])
