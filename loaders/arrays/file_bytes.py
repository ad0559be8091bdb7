"""Bytes of a file read into memory that is there already, by several threads through one handle."""

import os

import numpy as np


def read_into(handle: int, offset: int, out: np.ndarray) -> bool:
    """Fill `out`, contiguous, with what an open file holds from `offset` on; False if the file ends before."""
    waiting = out.view(np.uint8).data
    while len(waiting):  # one call reads at most 2 GiB
        n = os.preadv(handle, [waiting], offset)
        if n == 0:
            return False
        offset, waiting = offset + n, waiting[n:]
    return True
