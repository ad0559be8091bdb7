"""One measured training of ours, or the store that it reads, in a process of its own.

    python training_runs.py store STORE GENES CELLS DENSITY     write a cell store of random counts
    python training_runs.py train STORE BATCH_SIZE EPOCHS       -> a line of JSON

Trains from the cell store to a temporary run directory, model-card settings; the first epoch warms up. Says the cells a
second of each further epoch, all of it counted: reading, step, optimizer; and the peak memory of the process.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

import anndata
import numpy as np
import scipy.sparse as sp
from measured_process import read_status_mb

from atlasvi.engine import ingest, train


def write_store(store: str, genes: str, cells: str, density: str) -> None:
    """A cell store of random counts in 12 batches, drawn as peers/training.py draws them."""
    rng = np.random.default_rng(0)
    counts = sp.random(
        int(cells), int(genes), float(density), format="csr", dtype=np.float32, random_state=0,
        data_rvs=lambda n: rng.geometric(0.5, n).astype(np.float32),
    )  # fmt: skip
    adata = anndata.AnnData(counts)
    adata.obs["batch"] = rng.integers(0, 12, int(cells)).astype(str)
    with tempfile.TemporaryDirectory() as folder:
        adata.write_h5ad(Path(folder) / "counts.h5ad")
        ingest(Path(folder) / "counts.h5ad", store)


def measure(store: str, batch_size: str, epochs: str) -> None:
    """Train, and say how fast."""
    settings = {"validation_fraction": 0.0, "early_stopping": False, "keep": "last", "evaluation_cells": 1}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        sizes = {"epochs": int(epochs), "batch_size": int(batch_size)}
        train(store, out, batch_key="batch", device="cpu", settings=settings, **sizes)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rates = [line["cells_per_s"] for line in lines if line["kind"] == "epoch"][1:]
    said = {"cells_per_s": statistics.median(rates), "epochs": rates, "peak_mb": read_status_mb("VmHWM")}
    print(json.dumps(said))


if __name__ == "__main__":
    {"store": write_store, "train": measure}[sys.argv[1]](*sys.argv[2:])
