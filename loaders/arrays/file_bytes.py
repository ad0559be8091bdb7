"""Files that stay open: how many may be open, and how their bytes are read into existing memory."""

import os
import resource

import numpy as np


def share_of_files(part: int, most: int) -> int:
    """One in `part` of the files that this process may open (`ulimit -n`), at least 1 and at most `most`."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return most if limit == resource.RLIM_INFINITY else max(min(limit // part, most), 1)


def read_into(handle: int, offset: int, out: np.ndarray) -> bool:
    """Fill contiguous `out` with an open file's bytes from `offset` on; returns False if the file ends before."""
    waiting = out.view(np.uint8).data
    while len(waiting):  # one call reads at most 2 GiB
        n = os.preadv(handle, [waiting], offset)
        if n == 0:
            return False
        offset, waiting = offset + n, waiting[n:]
    return True
