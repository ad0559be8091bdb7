"""Our side of benchmarks/loaders.py: one measurement a process, printed as a line of JSON.

usage: python loader_runs.py epochs PATH SECONDS       shuffled minibatches of 1,024 cells from a store or a source
       python loader_runs.py uncached PATH
       python loader_runs.py order PATH NAMES.npz      which cells the minibatches of an epoch hold
       python loader_runs.py ingest OUT PROFILE H5AD...
       python loader_runs.py versions
"""

import platform
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version

import anndata.io  # noqa: F401  what opening would import is imported before anything is measured
import h5py  # noqa: F401
import numpy as np
import torch  # noqa: F401
import zarr  # noqa: F401
from measured_process import Epoch, measure_epochs, measure_uncached, read_status_mb, reset_peak, say

from atlasvi.loaders import BatchLoader, CellData, ingest

BATCH = 1024


def open_loader(path: str) -> BatchLoader:
    """Minibatches with the covariate `batch`, as annbatch is asked for it."""
    return BatchLoader(path, BATCH, seed=0, codes=["batch"])


def open_epochs(path: str) -> Epoch:
    """What measures epochs of `path`."""
    loader = open_loader(path)

    def start_epoch() -> Iterator[int]:
        for batch in loader:
            yield len(batch)

    return start_epoch


def read_names(data: CellData) -> np.ndarray:
    """The names of all cells, as their sources have them."""
    step = 2**16
    slices = [data.read_obs(at, min(at + step, data.n_cells)).index for at in range(0, data.n_cells, step)]
    return np.concatenate([names.to_numpy(dtype=str) for names in slices])


def write_order(path: str, out: str) -> None:
    """Write the names of the cells of an epoch in order, and the sizes of its minibatches."""
    loader = open_loader(path)
    batches = [batch.rows.numpy() for batch in loader]
    names = read_names(loader.data)[np.concatenate(batches)]
    np.savez(out, names=names, sizes=[len(batch) for batch in batches])
    say({"cells": len(names)})


def measure_ingest(out: str, profile: str, *paths: str) -> None:
    """Time and peak memory (of this process alone) of an ingest with a worker a core."""
    imports_mb = reset_peak()
    started = time.perf_counter()
    report = ingest(list(paths), out, profile=profile, workers=None)
    wall_s = time.perf_counter() - started
    peak_mb = read_status_mb("VmHWM")
    say({"cells": report.n_cells, "wall_s": wall_s, "imports_mb": imports_mb, "peak_mb": peak_mb})


def main(what: str, *arguments: str) -> None:
    """Do what the command line says."""
    if what == "epochs":
        path, seconds = arguments
        if "soma" in path:
            import tiledbsoma  # noqa: F401
        say(measure_epochs(lambda: open_epochs(path), float(seconds)))
    elif what == "uncached":
        say(measure_uncached(lambda: open_epochs(arguments[0]), arguments[0]))
    elif what == "order":
        write_order(*arguments)
    elif what == "ingest":
        measure_ingest(*arguments)
    elif what == "versions":
        names = ("atlasvi", "torch", "zarr", "numcodecs", "anndata", "h5py", "numpy", "numba")
        say({"python": platform.python_version()} | {name: version(name) for name in names})
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
