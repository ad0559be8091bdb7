"""Write a small run, finished and stopped, its minified store and what they give, in the format of the day.

    python -m tests.golden.make_runs NAME

They go into tests/golden/runs/NAME.tar.gz, one for each format that there ever was; `unversioned` is that of runs that
did not say a version yet. All of them must be read for ever (test_old_runs.py).
"""

import contextlib
import shutil
import signal
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import anndata
import numpy as np

from atlasvi.engine import minify, simulate, train
from atlasvi.engine.distributed.signals import TrainingInterrupted
from atlasvi.engine.minified.minified_store import MinifiedStore
from atlasvi.engine.queries.minified_queries import read_latent
from atlasvi.engine.training.progress import RunLog
from atlasvi.loaders import open_cells

SETTINGS = {"n_hidden": 6, "n_latent": 3, "n_layers": 1, "batch_size": 32}


def main() -> None:
    archive = Path(__file__).with_name("runs") / f"{sys.argv[1]}.tar.gz"
    with tempfile.TemporaryDirectory() as work, contextlib.chdir(work):
        write(Path())
        with tarfile.open(archive, "w:gz") as file:
            file.add(".", filter=lambda member: None if "tensorboard" in member.name else member)


def write(folder: Path) -> None:
    """Write all of it into a folder, by relative paths."""
    cells = folder / "cells.h5ad"
    simulate(cells, n_cells=150, n_genes=20, n_batches=2, n_types=3, seed=0)
    adata = anndata.read_h5ad(cells)
    adata.layers["counts"], adata.X = adata.X.astype(np.float32), adata.X.astype(np.float32) * 0.5
    adata = anndata.AnnData(adata.X, adata.obs[["batch", "cell_type"]], adata.var[[]], layers=dict(adata.layers))
    adata.write_h5ad(cells, compression="gzip")
    data = open_cells(cells, layer="counts")
    keys = {"batch_key": "batch", "epochs": 3, "settings": SETTINGS, "seed": 1}
    run = train(data, folder / "finished", **keys)
    minify(run, data, folder / "finished.mini")

    def log_and_stop(self: RunLog, epoch: int, batch: int, number: int, *rest: Any) -> None:
        if number == 6:  # in the middle of the second epoch
            signal.raise_signal(signal.SIGTERM)

    with mock.patch.object(RunLog, "step", log_and_stop), contextlib.suppress(TrainingInterrupted):
        train(data, folder / "stopped", **keys)
    shutil.copytree(folder / "stopped", folder / "resumed")
    resumed = train(data, folder / "resumed", batch_key="batch", resume=True)
    shutil.rmtree(folder / "resumed")
    store = MinifiedStore(folder / "finished.mini")
    latents = np.concatenate([np.stack(latents) for _, *latents in read_latent(store)], axis=1)
    weights = {f"resumed/{name}": tensor.numpy() for name, tensor in resumed.model.state_dict().items()}
    np.savez_compressed(folder / "expected.npz", latents=latents, **weights)


if __name__ == "__main__":
    main()
