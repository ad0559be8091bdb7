"""Products of log1p of sparse counts with dense matrices on a CPU."""

import math
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from atlasvi.kernels.cpu_likelihood import run_on_threads
from atlasvi.kernels.reference import as_integers

LOG1P = np.log1p(np.arange(256)).astype(np.float32)
SAMPLES = 4096


def multiply(indptr: Tensor, genes: Tensor, counts: Tensor, weight: Tensor) -> Tensor:
    """log1p(counts) @ weight: float32 [cells, hidden]."""
    out = torch.empty(len(indptr) - 1, weight.shape[1])
    arrays = (
        indptr.numpy().astype(np.int64),
        genes.numpy(),
        as_integers(counts).numpy(),
        weight.detach().contiguous().numpy(),
    )
    run_on_threads(lambda _, a, b: _multiply(a, b, *arrays, out.numpy()), len(out), torch.get_num_threads())
    return out


def accumulate(indptr: Tensor, genes: Tensor, counts: Tensor, grad: Tensor, n_genes: int) -> Tensor:
    """log1p(counts).T @ grad: float32 [genes, hidden]; each thread has a range of genes of its own."""
    out = torch.zeros(n_genes, grad.shape[1])
    arrays = (indptr.numpy().astype(np.int64), genes.numpy(), as_integers(counts).numpy(), grad.numpy())
    n_threads = torch.get_num_threads()
    # as many counts to each, judged by some of them; a gene's sum is in the order of the cells, whatever the ranges
    sample = np.sort(arrays[1][:: max(len(arrays[1]) // SAMPLES, 1)])
    cuts = [int(sample[len(sample) * k // n_threads]) for k in range(1, n_threads)] if len(sample) else []
    edges = np.array([0, *cuts, n_genes])
    if len(edges) == n_threads + 1:

        def add_range(_: int, a: int, b: int) -> None:
            for k in range(a, b):
                _accumulate(edges[k], edges[k + 1], *arrays, out.numpy())

        run_on_threads(add_range, n_threads, n_threads)
    return out


@njit(nogil=True, cache=True)
def _log1p(count: int) -> Any:
    return LOG1P[count] if count < 256 else np.float32(math.log1p(count))


@njit(nogil=True, cache=True, fastmath={"contract"})
def _multiply(
    first: int,
    last: int,
    indptr: np.ndarray,
    genes: np.ndarray,
    counts: np.ndarray,
    weight: np.ndarray,
    out: np.ndarray,
) -> None:
    for cell in range(first, last):
        sums = out[cell]
        sums[:] = 0
        for k in range(indptr[cell], indptr[cell + 1]):
            value, row = _log1p(counts[k]), weight[genes[k]]
            for j in range(len(sums)):
                sums[j] += value * row[j]


@njit(nogil=True, cache=True, fastmath={"contract"})
def _accumulate(
    low: int, high: int, indptr: np.ndarray, genes: np.ndarray, counts: np.ndarray, grad: np.ndarray, out: np.ndarray
) -> None:
    """Genes [low, high) of the product."""
    for cell in range(len(indptr) - 1):
        row = grad[cell]
        start, stop = indptr[cell], indptr[cell + 1]
        begin = start + np.searchsorted(genes[start:stop], low)
        for k in range(begin, stop):
            if genes[k] >= high:
                break
            value, sums = _log1p(counts[k]), out[genes[k]]
            for j in range(len(row)):
                sums[j] += value * row[j]
