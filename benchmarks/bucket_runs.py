"""Our side of benchmarks/buckets.py: epochs of one path or address in a process, printed as a line of JSON.

usage: python bucket_runs.py PATH SECONDS              shuffled minibatches
       python bucket_runs.py ADDRESS SECONDS fetch     the bytes of a store's X, by obstore alone and not decoded
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from loader_runs import open_loader
from measured_process import Epoch, measure_epochs, say

from atlasvi.loaders.cells.open_cells import open_cells
from atlasvi.loaders.places.connections import connect
from atlasvi.loaders.places.object_path import to_place
from atlasvi.loaders.places.objects import traffic

RANGE_BYTES, FETCHED_TOGETHER = 1_500_000, 16


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


def open_fetches(address: str, counted: list[dict[str, int]]) -> Epoch:
    """What fetches all of X in ranges, by several threads: no way to read the store from its bucket can be faster."""
    import obstore

    folder = to_place(address) / "X"
    store = connect(folder.address, folder.storage)
    sizes = {name: size for name, size in folder.list_sizes().items() if "/c/" in name}
    ranges = [
        ((folder / name).address.key, at, min(at + RANGE_BYTES, size))
        for name, size in sizes.items()
        for at in range(0, size, RANGE_BYTES)
    ]
    n_cells = open_cells(address).n_cells

    def fetch(part: tuple[str, int, int]) -> int:
        key, start, stop = part
        return len(obstore.get_range(store, key, start=start, end=stop))

    def start_epoch() -> Iterator[int]:
        with ThreadPoolExecutor(FETCHED_TOGETHER) as threads:
            counted.append({"requests": len(ranges), "n_bytes": sum(threads.map(fetch, ranges))})
        yield n_cells

    return start_epoch


def main(path: str, seconds: str, what: str = "minibatches") -> None:
    """Measure, and print the figures."""
    open_path = open_fetches if what == "fetch" else open_epochs
    if "soma" in path:
        import tiledbsoma  # noqa: F401
    counted: list[dict[str, int]] = []
    figures = measure_epochs(lambda: open_path(path, counted), float(seconds))
    for epoch, count in zip([figures["warm_up"], *figures["epochs"]], counted, strict=True):
        epoch |= {} if "soma" in path else count  # TileDB's requests are its own
    say(figures)


if __name__ == "__main__":
    main(*sys.argv[1:])
