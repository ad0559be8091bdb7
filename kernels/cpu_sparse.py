"""Products of log1p of sparse counts with dense matrices on a CPU."""

import math
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from atlasvi.kernels.cpu_threads import run_on_threads
from atlasvi.kernels.reference import as_integers

LOG1P = np.log1p(np.arange(256)).astype(np.float32)
SAMPLES = 4096
BLOCK_BYTES = 2**18  # of the weight or its gradient: a block of genes stays in the fastest caches for all cells


def multiply(indptr: Tensor, genes: Tensor, counts: Tensor, weight: Tensor, raw: bool = False) -> Tensor:
    """log1p(counts) @ weight, or counts @ weight if raw: float32 [cells, hidden]."""
    out = torch.empty(len(indptr) - 1, weight.shape[1])
    arrays = (
        indptr.numpy().astype(np.int64),
        genes.numpy(),
        as_integers(counts).numpy(),
        weight.detach().contiguous().numpy(),
    )
    run_on_threads(lambda _, a, b: _multiply(a, b, *arrays, raw, out.numpy()), len(out), torch.get_num_threads())
    return out


def accumulate(indptr: Tensor, genes: Tensor, counts: Tensor, grad: Tensor, n_genes: int, raw: bool = False) -> Tensor:
    """log1p(counts).T @ grad, or counts.T @ grad if raw: float32 [genes, hidden]; genes are split among threads."""
    out = torch.empty(n_genes, grad.shape[1])
    arrays = (indptr.numpy().astype(np.int64), genes.numpy(), as_integers(counts).numpy(), grad.numpy())
    n_threads = torch.get_num_threads()
    # equal numbers of counts to each thread, estimated from a sample; a gene's sum is in the order of the cells anyway
    used = arrays[1][: arrays[0][-1]]
    sample = np.sort(used[:: max(len(used) // SAMPLES, 1)])
    cuts = [int(sample[len(sample) * k // n_threads]) for k in range(1, n_threads)] if len(sample) else []
    edges = np.array([0, *cuts, *[n_genes] * (n_threads - len(cuts))])

    def add_range(_: int, a: int, b: int) -> None:
        for k in range(a, b):
            _accumulate(edges[k], edges[k + 1], *arrays, raw, out.numpy())

    run_on_threads(add_range, n_threads, n_threads)
    return out


@njit(nogil=True, cache=True)
def _value_of(count: int, raw: bool) -> Any:
    if raw:
        return np.float32(count)
    return LOG1P[count] if count < 256 else np.float32(math.log1p(count))


@njit(nogil=True, cache=True, fastmath={"contract"})
def _multiply(
    first: int,
    last: int,
    indptr: np.ndarray,
    genes: np.ndarray,
    counts: np.ndarray,
    weight: np.ndarray,
    raw: bool,
    out: np.ndarray,
) -> None:
    """Cells [first, last) of the product, one block of genes after the other."""
    n_genes, n_hidden = weight.shape
    block = max(BLOCK_BYTES // (4 * n_hidden), 1)
    reached = indptr[first:last].copy()
    out[first:last] = 0
    for low in range(0, n_genes, block):
        high = low + block
        for cell in range(first, last):
            sums, k, end = out[cell], reached[cell - first], indptr[cell + 1]
            while k < end and genes[k] < high:
                value, row = _value_of(counts[k], raw), weight[genes[k]]
                for j in range(n_hidden):
                    sums[j] += value * row[j]
                k += 1
            reached[cell - first] = k


@njit(nogil=True, cache=True, fastmath={"contract"})
def _accumulate(
    first: int,
    last: int,
    indptr: np.ndarray,
    genes: np.ndarray,
    counts: np.ndarray,
    grad: np.ndarray,
    raw: bool,
    out: np.ndarray,
) -> None:
    """Genes [first, last) of the product, one block of them after the other."""
    n_cells, n_hidden = grad.shape
    block = max(BLOCK_BYTES // (4 * n_hidden), 1)
    reached = np.empty(n_cells, np.int64)
    for cell in range(n_cells):
        start, stop = indptr[cell], indptr[cell + 1]
        reached[cell] = start + np.searchsorted(genes[start:stop], first)
    for low in range(first, last, block):
        high = min(low + block, last)
        out[low:high] = 0
        for cell in range(n_cells):
            row, k, end = grad[cell], reached[cell], indptr[cell + 1]
            while k < end and genes[k] < high:
                value, sums = _value_of(counts[k], raw), out[genes[k]]
                for j in range(n_hidden):
                    sums[j] += value * row[j]
                k += 1
            reached[cell] = k
