"""What a measured process does, ours and a peer's alike: epochs timed, memory, the page cache emptied.

Standard library alone: it runs in our environment and in the peers'. Linux alone: it reads /proc.
"""

import ctypes
import json
import mmap
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

MOST_EPOCHS = 50

Epoch = Callable[[], Iterable[int]]
"""Starts an epoch: the number of cells of each minibatch as it comes."""


def measure_epochs(open_data: Callable[[], Epoch], seconds: float) -> dict:
    """Open the data, go through one epoch to warm up, then through at least two, and on until `seconds` are measured.

    first_batch_s  from before `open_data` to the first minibatch
    warm_up        the first epoch, opening included: `cells`, `wall_s`, `cpu_s` (user + system, all threads)
    epochs         the same for each epoch after it
    imports_mb, peak_mb  resident memory before `open_data`, and the most from there on
    """
    imports_mb = reset_peak()
    started, cpu = time.perf_counter(), time.process_time()
    start_epoch = open_data()
    batches: Iterator[int] = iter(start_epoch())
    cells = next(batches)
    first_batch_s = time.perf_counter() - started
    cells += sum(batches)
    warm_up = {"cells": cells, "wall_s": time.perf_counter() - started, "cpu_s": time.process_time() - cpu}
    epochs: list[dict] = []
    while len(epochs) < 2 or (sum(epoch["wall_s"] for epoch in epochs) < seconds and len(epochs) < MOST_EPOCHS):
        epochs.append(time_epoch(start_epoch))
    peak_mb = read_status_mb("VmHWM")
    return {
        "first_batch_s": first_batch_s,
        "imports_mb": imports_mb,
        "peak_mb": peak_mb,
        "warm_up": warm_up,
        "epochs": epochs,
    }


def measure_uncached(open_data: Callable[[], Epoch], path: str | Path) -> dict:
    """Warm up the code with an epoch, empty the page cache, then time opening the data anew and an epoch together."""
    sum(open_data()())
    how = empty_page_cache(path)
    left = resident_share(path)
    if left > 0.05:
        raise SystemExit(f"{path}: {left:.0%} of it stays in the page cache ({how}): nothing uncached can be measured.")
    epoch = time_epoch(lambda: open_data()())
    return {"epochs": [epoch], "cache_emptied": how, "share_left": left}


def time_epoch(start_epoch: Epoch) -> dict[str, float]:
    """Cells, wall seconds and CPU seconds of one epoch."""
    started, cpu = time.perf_counter(), time.process_time()
    cells = sum(start_epoch())
    return {"cells": cells, "wall_s": time.perf_counter() - started, "cpu_s": time.process_time() - cpu}


def reset_peak() -> float:
    """Forget the peak of resident memory so far (that of the imports); return what is resident now, in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return read_status_mb("VmRSS")


def read_status_mb(field: str, process: int | str = "self") -> float:
    """A figure of /proc/PROCESS/status in MB (10**6 bytes); `ru_maxrss` would count what the parent held, too."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(field + ":"))


def list_files(path: str | Path) -> list[Path]:
    """The file, or all files below the folder."""
    place = Path(path)
    return [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())


def empty_page_cache(path: str | Path) -> str:
    """Have the kernel forget all files, or where that isn't allowed those of `path`; return how it was done."""
    os.sync()  # dirty pages are not dropped
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
        return "drop_caches"
    except OSError:
        for file in list_files(path):
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        return "posix_fadvise(DONTNEED)"


def resident_share(path: str | Path) -> float:
    """Which share of the pages of a file or folder is in the page cache (mincore)."""
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    resident = pages = 0
    for file in list_files(path):
        size = file.stat().st_size
        if size == 0:
            continue
        with open(file, "rb") as opened, mmap.mmap(opened.fileno(), size, flags=mmap.MAP_PRIVATE) as mapped:
            view = (ctypes.c_char * size).from_buffer(mapped)
            states = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
            failed = mincore(ctypes.addressof(view), size, states)
            del view
        if failed:
            raise SystemExit(f"{file}: mincore: {os.strerror(ctypes.get_errno())}.")
        resident += sum(state & 1 for state in states.raw)
        pages += len(states)
    return resident / max(pages, 1)


def say(figures: dict) -> None:
    """Print figures as the last line of a measured process, where benchmarks/loaders.py reads them."""
    print(json.dumps(figures), flush=True)
