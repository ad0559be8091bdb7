"""What the parts of the benchmark of a GPU have in common: random counts, a store of them, clocks."""

import os
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import anndata
import numpy as np
import scipy.sparse as sp
import torch

from atlasvi.engine import ingest
from atlasvi.kernels import SparseCounts

DENSITY = 0.05
FILE_CELLS = 32_768


def choose_device(quick: bool) -> torch.device:
    """CUDA; the CPU where there is none and --quick only tries the script. Raises SystemExit otherwise."""
    if not torch.cuda.is_available() and not quick:
        raise SystemExit("This needs a CUDA device, and torch sees none here (--quick tries the script without).")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe_machine(device: torch.device) -> dict:
    """Device, cores, versions, date."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else "no GPU"
    versions = {"torch": torch.__version__, "python": sys.version.split()[0]}
    return {"device": name, "cores": os.cpu_count(), **versions, "date": date.today().isoformat()}


def draw_counts(cells: int, genes: int, seed: int) -> sp.csr_matrix:
    """Counts of which about 5% are not zero; a few genes are in nearly every cell, most in few."""
    rng = np.random.default_rng(seed)
    share = rng.lognormal(0, 1.5, genes)
    for _ in range(20):  # what is cut off at the top is given to the rest
        share = np.minimum(share * DENSITY / share.mean(), 0.98)
    parts = []
    for start in range(0, cells, 1_024):
        present = rng.random((min(1_024, cells - start), genes), np.float32) < share.astype(np.float32)
        part = sp.csr_matrix(present, dtype=np.float32)
        part.data = rng.geometric(0.5, part.nnz).astype(np.float32)
        parts.append(part)
    return sp.vstack(parts, format="csr")


def to_sparse_counts(counts: sp.csr_matrix, device: torch.device) -> SparseCounts:
    """The counts on a device, in the types that the loader gives them."""
    index_type = torch.uint16 if counts.shape[1] <= 2**16 else torch.int32
    return SparseCounts(
        torch.from_numpy(counts.indptr).int().to(device),
        torch.from_numpy(counts.indices).int().to(index_type).to(device),
        torch.from_numpy(counts.data).to(torch.uint8).to(device),
    )


def draw_adata(cells: int, genes: int, seed: int) -> anndata.AnnData:
    """Random counts in 12 batches."""
    adata = anndata.AnnData(draw_counts(cells, genes, seed))
    adata.obs["batch"] = np.random.default_rng(seed).integers(0, 12, cells).astype(str)
    return adata


def write_store(store: Path, genes: int, cells: int) -> None:
    """A cell store of random counts in 12 batches: one file of counts, read as often as it takes."""
    n_file = min(cells, FILE_CELLS)
    first = store.with_suffix(".0.h5ad")
    draw_adata(n_file, genes, seed=3).write_h5ad(first)
    files = [first]
    for number in range(1, cells // n_file):
        files.append(store.with_suffix(f".{number}.h5ad"))
        os.link(first, files[-1])
    ingest(files, store)
    for file in files:
        file.unlink()


def time_ms(
    function: Callable[[], object], device: torch.device, repeats: int = 20, warm_up: int = 3, as_graph: bool = False
) -> float:
    """Median milliseconds, by the device's clock where it has one.

    as_graph  replay the call as a CUDA graph, as a training step is: what the host needs to launch it is left out
    """
    if as_graph and device.type == "cuda":
        function = capture(function)
    for _ in range(warm_up):
        function()
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        else:
            began = time.perf_counter()
            function()
            times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def capture(function: Callable[[], object]) -> Callable[[], object]:
    """A call that replays what a call of `function` does on the device."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
