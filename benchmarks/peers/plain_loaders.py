"""Cells per second of the peers' shuffled loaders over the synthetic atlas, one line a configuration.

usage: python plain_loaders.py WHAT ATLAS_DIR       WHAT: annbatch | tiledbsoma-ml | scdataset | scvi-in-memory

Written without the code that measures both sides in benchmarks/loaders.py, as a check on it.
Builds the peer's own format beside the h5ad files on first use. Prints cells/s, CPU seconds per
100,000 cells (user + system, all threads), and peak resident memory in GB. Batches of 1,024.
"""

import contextlib
import resource
import sys
import time
import warnings
from pathlib import Path

import anndata as ad

warnings.filterwarnings("ignore")
BATCH = 1024


def measure(batches, tag, limit=None):
    """Go through the batches once and print the figures."""
    start, cpu, cells = time.perf_counter(), time.process_time(), 0
    for x in batches:
        cells += x.shape[0]
        if limit and cells >= limit:
            break
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{tag}: {cells / wall:.0f} cells/s, {cpu / cells * 1e5:.2f} CPU s/100k cells, {rss:.2f} GB", flush=True)


def annbatch(root):
    """Epochs of annbatch, from its own collection."""
    import zarr
    from annbatch import DatasetCollection, Loader

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    store = root / "annbatch.zarr"
    if not store.exists():
        DatasetCollection(str(store)).add_adatas(adata_paths=sorted(map(str, root.glob("atlas*.h5ad"))), shuffle=True)

    def read(group):
        return ad.AnnData(X=ad.io.sparse_dataset(group["X"]), obs=ad.io.read_elem(group["obs"])[["batch"]])

    for chunk, preload in ((256, 32), (32, 256)):
        loader = Loader(
            batch_size=BATCH, chunk_size=chunk, preload_nchunks=preload, shuffle=True, to="torch", preload_to_gpu=False
        ).use_collection(DatasetCollection(str(store)), load_adata=read)
        for _ in range(3):
            measure((batch["X"] for batch in loader), f"annbatch chunk {chunk} preload {preload} (CSR)")


def tiledbsoma_ml(root):
    """Epochs of tiledbsoma-ml, from a SOMA experiment of the first file."""
    import tiledbsoma
    import tiledbsoma.io
    from tiledbsoma_ml import ExperimentDataset

    uri = str(root / "soma")
    if not Path(uri).exists():
        # tiledbsoma 2.3.0 raises on the layers of anndata 0.13 once X is written, which is all this needs
        with contextlib.suppress(TypeError):
            tiledbsoma.io.from_anndata(uri, ad.read_h5ad(root / "atlas0.h5ad"), measurement_name="RNA")
    with tiledbsoma.open(uri) as experiment, experiment.axis_query(measurement_name="RNA") as query:
        data = ExperimentDataset(
            query, layer_name="data", batch_size=BATCH, io_batch_size=65536, shuffle=True, return_sparse_X=True
        )
        for _ in range(2):
            measure((x for x, _ in data), "tiledbsoma-ml chunk 64 io 65536 (CSR)")


def scdataset(root):
    """Epochs of scDataset, from the first file itself."""
    from scdataset import BlockShuffling, scDataset
    from torch.utils.data import DataLoader

    backed = ad.read_h5ad(root / "atlas0.h5ad", backed="r")
    for block in (16, 64):
        data = scDataset(
            backed, BlockShuffling(block_size=block), batch_size=BATCH, fetch_factor=64,
            fetch_callback=lambda adata, rows: adata.X[rows],
        )  # fmt: skip
        measure(DataLoader(data, batch_size=None), f"scDataset block {block} fetch 64 (h5ad, CSR)")


def scvi_in_memory(root):
    """The first 60,000 cells of an epoch of scvi-tools' loader, all in memory."""
    import scvi
    from scvi.dataloaders import AnnDataLoader

    adata = ad.read_h5ad(root / "atlas0.h5ad")
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    manager = scvi.model.SCVI(adata).adata_manager
    loader = AnnDataLoader(manager, batch_size=BATCH, shuffle=True)
    measure((batch["X"] for batch in loader), "scvi-tools AnnDataLoader, all in memory (dense)", limit=60_000)


{"annbatch": annbatch, "tiledbsoma-ml": tiledbsoma_ml, "scdataset": scdataset, "scvi-in-memory": scvi_in_memory}[
    sys.argv[1]
](Path(sys.argv[2]))
