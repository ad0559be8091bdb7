"""The peers' side of benchmarks/buckets.py: epochs of one address in a process, printed as a line of JSON.

usage: python buckets.py annbatch s3://BUCKET/COLLECTION SECONDS        through zarr's ObjectStore, which is obstore's
       python buckets.py tiledbsoma-ml s3://BUCKET/EXPERIMENT SECONDS   through TileDB's own S3

The server is that of the environment variable AWS_ENDPOINT_URL, the credentials are in the environment too.
"""

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad

import loaders  # of this folder

sys.path.append(str(Path(__file__).resolve().parents[1]))  # both sides are measured by the same code
from measured_process import Epoch, measure_epochs, say

warnings.filterwarnings("ignore")
BATCH = 1024
CHUNK, PRELOAD = 256, 32


def annbatch(address: str, seconds: str) -> None:
    """Epochs from the collection. zarrs reads no buckets, so that zarr-python decodes."""
    import torch  # noqa: F401
    import zarr
    from annbatch import DatasetCollection, Loader
    from obstore.store import S3Store
    from zarr.storage import ObjectStore

    bucket, _, prefix = address.removeprefix("s3://").partition("/")

    def read(group: Any) -> ad.AnnData:
        return ad.AnnData(X=ad.io.sparse_dataset(group["X"]), obs=ad.io.read_elem(group["obs"])[["batch"]])

    def open_data() -> Epoch:
        store = S3Store(
            bucket, prefix=prefix, endpoint=os.environ["AWS_ENDPOINT_URL"], client_options={"allow_http": True}
        )
        group = zarr.open_group(ObjectStore(store, read_only=True), mode="r")
        loader: Any = Loader(
            batch_size=BATCH, chunk_size=CHUNK, preload_nchunks=PRELOAD, shuffle=True, to="torch",
            preload_to_gpu=False,
        ).use_collection(DatasetCollection(group, mode="r"), load_adata=read)  # fmt: skip

        def start_epoch() -> Iterator[int]:
            for batch in loader:
                yield batch["X"].shape[0]

        return start_epoch

    say(measure_epochs(open_data, float(seconds)))


def tiledbsoma_ml(address: str, seconds: str) -> None:
    """Epochs of the experiment."""
    import tiledbsoma

    context = tiledbsoma.SOMATileDBContext(
        tiledb_config={
            "vfs.s3.endpoint_override": os.environ["AWS_ENDPOINT_URL"].removeprefix("http://"),
            "vfs.s3.scheme": "http",
            "vfs.s3.use_virtual_addressing": "false",
            "vfs.s3.region": os.environ["AWS_REGION"],
        }
    )
    loaders.tiledbsoma_ml(address, seconds, context)


if __name__ == "__main__":
    {"annbatch": annbatch, "tiledbsoma-ml": tiledbsoma_ml}[sys.argv[1]](*sys.argv[2:])
