"""The peers' side of benchmarks/loaders.py: one measurement a process, printed as a line of JSON; runs in their Python.

usage: python loaders.py annbatch COLLECTION SECONDS CHUNK PRELOAD      minibatches of 1,024 cells, CSR
       python loaders.py annbatch-uncached COLLECTION CHUNK PRELOAD
       python loaders.py annbatch-order COLLECTION NAMES.npz CHUNK PRELOAD
       python loaders.py annbatch-ingest OUT H5AD...
       python loaders.py scdataset H5AD SECONDS BLOCK
       python loaders.py tiledbsoma-ml EXPERIMENT SECONDS
       python loaders.py versions

plain_loaders.py, which measures the same settings without our code, also builds what is read here.
"""

import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))  # both sides are measured by the same code
from measured_process import Epoch, measure_epochs, measure_uncached, read_status_mb, reset_peak, say

warnings.filterwarnings("ignore")
BATCH = 1024


def open_annbatch(path: str, chunk: str, preload: str, **settings: Any) -> Any:
    """Annbatch's loader over its own collection, decoded by zarrs."""
    from annbatch import DatasetCollection, Loader

    def read(group: Any) -> ad.AnnData:
        return ad.AnnData(X=ad.io.sparse_dataset(group["X"]), obs=ad.io.read_elem(group["obs"])[["batch"]])

    return Loader(
        batch_size=BATCH, chunk_size=int(chunk), preload_nchunks=int(preload), shuffle=True, to="torch",
        preload_to_gpu=False, **settings,
    ).use_collection(DatasetCollection(path), load_adata=read)  # fmt: skip


def import_annbatch() -> None:
    """Import what annbatch needs, and have zarrs decode."""
    import annbatch  # noqa: F401
    import torch  # noqa: F401
    import zarr

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})


def open_annbatch_epochs(path: str, chunk: str, preload: str) -> Epoch:
    """What measures epochs of annbatch."""
    loader = open_annbatch(path, chunk, preload)

    def start_epoch() -> Iterator[int]:
        for batch in loader:
            yield batch["X"].shape[0]

    return start_epoch


def annbatch(path: str, seconds: str, chunk: str, preload: str) -> None:
    """Epochs from the collection."""
    import_annbatch()
    say(measure_epochs(lambda: open_annbatch_epochs(path, chunk, preload), float(seconds)))


def annbatch_uncached(path: str, chunk: str, preload: str) -> None:
    """An epoch from the collection, its files not in the page cache."""
    import_annbatch()
    say(measure_uncached(lambda: open_annbatch_epochs(path, chunk, preload), path))


def annbatch_order(path: str, out: str, chunk: str, preload: str) -> None:
    """Write the names of the cells of an epoch in order, and the sizes of its minibatches."""
    import_annbatch()
    loader = open_annbatch(path, chunk, preload, rng=np.random.default_rng(0))
    batches = [batch["obs"].index.to_numpy(dtype=str) for batch in loader]
    np.savez(out, names=np.concatenate(batches), sizes=[len(batch) for batch in batches])
    say({"cells": sum(len(batch) for batch in batches)})


def annbatch_ingest(out: str, *paths: str) -> None:
    """Time and peak memory of writing the shuffled collection."""
    import_annbatch()
    from annbatch import DatasetCollection

    imports_mb = reset_peak()
    started = time.perf_counter()
    DatasetCollection(out).add_adatas(adata_paths=sorted(paths), shuffle=True)
    wall_s = time.perf_counter() - started
    say({"wall_s": wall_s, "imports_mb": imports_mb, "peak_mb": read_status_mb("VmHWM")})


def scdataset(path: str, seconds: str, block: str) -> None:
    """Epochs of scDataset over the backed h5ad file."""
    import h5py  # noqa: F401
    from scdataset import BlockShuffling, scDataset
    from torch.utils.data import DataLoader

    def open_data() -> Epoch:
        backed = ad.read_h5ad(path, backed="r")
        data = scDataset(
            backed, BlockShuffling(block_size=int(block)), batch_size=BATCH, fetch_factor=64,
            fetch_callback=lambda adata, rows: adata.X[rows],
        )  # fmt: skip
        return lambda: (x.shape[0] for x in DataLoader(data, batch_size=None))

    say(measure_epochs(open_data, float(seconds)))


def tiledbsoma_ml(path: str, seconds: str, context: Any = None) -> None:
    """Epochs of tiledbsoma-ml over the SOMA experiment; `context` says how TileDB reaches it, if it is in a bucket."""
    import tiledbsoma
    from tiledbsoma_ml import ExperimentDataset

    opened: list[Any] = []  # kept open while epochs are read

    def open_data() -> Epoch:
        experiment: Any = tiledbsoma.open(path, context=context)
        query = experiment.axis_query(measurement_name="RNA")
        opened.extend([experiment, query])
        data = ExperimentDataset(
            query, layer_name="data", batch_size=BATCH, io_batch_size=65536, shuffle=True, return_sparse_X=True
        )
        return lambda: (x.shape[0] for x, _ in data)

    say(measure_epochs(open_data, float(seconds)))


def versions() -> None:
    """Versions of the peers and of what they stand on."""
    names = ("annbatch", "scDataset", "tiledbsoma-ml", "tiledbsoma", "anndata", "zarr", "zarrs", "torch", "numpy")
    say({"python": platform.python_version()} | {name: version(name) for name in names})


RUNS: dict[str, Callable[..., None]] = {
    "annbatch": annbatch,
    "annbatch-uncached": annbatch_uncached,
    "annbatch-order": annbatch_order,
    "annbatch-ingest": annbatch_ingest,
    "scdataset": scdataset,
    "tiledbsoma-ml": tiledbsoma_ml,
    "versions": versions,
}

if __name__ == "__main__":
    RUNS[sys.argv[1]](*sys.argv[2:])
