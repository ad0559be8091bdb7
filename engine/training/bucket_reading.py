"""What an epoch asks of a bucket: requests and bytes, which cost money and time, measured on some blocks."""

import time
from dataclasses import dataclass, replace

import numpy as np

from atlasvi.loaders.cells.cells_protocol import Cells
from atlasvi.loaders.places.object_path import name_bucket
from atlasvi.loaders.places.objects import traffic

BLOCKS = 8
SECONDS = 3.0


@dataclass(frozen=True)
class BucketReading:
    """What all ranks together read of data in a bucket in an epoch, validation included.

    bucket    as addresses begin: s3://atlases
    requests  that the bucket is asked; none for what the disk cache has
    n_bytes   of the bucket and the cache
    kept      the share of the bytes that the disk cache of this machine has already
    """

    bucket: str
    requests: float
    n_bytes: float
    kept: float

    def describe(self) -> str:
        """A sentence for the user."""
        size = f"{self.n_bytes / 1e9:,.1f} GB" if self.n_bytes >= 1e9 else f"{self.n_bytes / 1e6:,.1f} MB"
        asked = f"in about {self.requests:,.0f} requests"
        if self.kept:
            return (
                f"All ranks read {size} an epoch, {self.kept:.0%} of it from the cache of this machine and the rest "
                f"from {self.bucket}, {asked}."
            )
        return f"All ranks read {size} an epoch from {self.bucket}, {asked}."


def measure_bucket_reading(data: Cells, n_ranks: int, n_passes: int) -> BucketReading | None:
    """What `n_passes` over the data ask of its bucket in an epoch, from reading some blocks; None for local data.

    Raises as `Cells.read_block`.
    """
    bucket = name_bucket(data.path)
    if bucket is None:
        return None
    n_blocks, until = len(data.block_starts) - 1, time.monotonic() + SECONDS
    data.read_block(0)  # opens files, whose indices are then kept
    before, n_read = replace(traffic), 0
    for block in np.unique(np.linspace(0, n_blocks - 1, BLOCKS).astype(int)).tolist():
        data.read_block(block)
        n_read += 1
        if time.monotonic() > until:
            break
    # the cells of a minibatch are sorted by block and cut into equal parts: at a cut, two ranks read the same block
    group = data.group_blocks
    times = n_blocks / n_read * n_passes * min(n_ranks, (group + n_ranks - 1) / group)
    n_bytes, kept = traffic.n_bytes - before.n_bytes, traffic.kept_bytes - before.kept_bytes
    requests = times * (traffic.requests - before.requests)
    return BucketReading(bucket, requests, times * (n_bytes + kept), kept / max(n_bytes + kept, 1))
