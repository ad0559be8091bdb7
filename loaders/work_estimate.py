"""What a long piece of work will take, from doing a little of it: what `--dry-run` says before anything is written."""

import resource
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from atlasvi.loaders.errors import OutputError
from atlasvi.loaders.places.object_path import ObjectPath, to_place

TRIAL_SECONDS = 5.0  # about how long a little of the work is done


@dataclass(frozen=True, kw_only=True)
class WorkEstimate:
    """What a command would do. Sizes and times were measured on `n_tried` of the cells, and scaled.

    n_cells, n_genes  of what would be written
    n_tried       cells that were worked on; 0: nothing could be measured
    seconds       of the whole work, with `n_processes`; None: not known
    memory_bytes  of a process, at its peak
    disk_bytes    of what would be written, at `out`
    scratch_bytes that the work needs beside `out` until it is done
    free_bytes    of the disk that holds `out`; 0: it is in a bucket
    notes         what else the user should know, a sentence each
    """

    out: str
    n_cells: int
    n_genes: int
    n_tried: int
    seconds: float | None
    memory_bytes: int
    disk_bytes: int
    scratch_bytes: int = 0
    free_bytes: int = 0
    n_processes: int = 1
    notes: tuple[str, ...] = ()


def time_parts(parts: Iterator[int], seconds: float = TRIAL_SECONDS) -> tuple[int, float]:
    """Do parts of some work until `seconds` are over; returns (cells of these parts, seconds for a cell).

    parts  yields the number of cells of each part, once it is done
    The first part is left out of the time if there are others, because code is compiled and files are opened in it.
    """
    done, began = list[int](), [time.monotonic()]
    for n_cells in parts:
        done.append(n_cells)
        began.append(time.monotonic())
        if began[-1] - began[0] > seconds:
            break
    first = 1 if len(done) > 1 else 0
    return sum(done), (began[-1] - began[first]) / max(sum(done[first:]), 1)


def check_room(out: str | Path, n_bytes: int) -> int:
    """Bytes free on the disk of `out`, which need not exist; 0 for a bucket, which has no end.

    Raises OutputError if they are fewer than `n_bytes`.
    """
    if isinstance(to_place(out), ObjectPath):
        return 0
    folder = next(parent for parent in Path(out).absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise OutputError(
            f"{out}: it needs about {n_bytes / 1e9:,.1f} GB, and its disk has {free / 1e9:,.1f} GB free: free space, "
            "or choose another place."
        )
    return free


def peak_memory_bytes() -> int:
    """The largest memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
