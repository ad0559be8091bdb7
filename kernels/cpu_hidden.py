"""Bias, layer norm, ReLU and dropout of a hidden layer on a CPU, and their gradients, cell by cell.

Loops that sum do not store, so that the last digit does not depend on the arrays' addresses: see cpu_likelihood.
"""

import math

import numpy as np
import torch
from numba import njit
from torch import Tensor

from atlasvi.kernels.cpu_threads import run_on_threads
from atlasvi.kernels.vector_math import FASTMATH, f32

EPSILON = 1e-5
FEW_VALUES = 2**19  # up to this number of values, one thread is faster than several


def norm_relu(
    projected: Tensor, columns: Tensor, codes: Tensor | None, dropout: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Output [cells, hidden] (see hidden_layer.norm_relu), and for the gradients: normed values, scales [cells]."""
    out, normed, scales = torch.empty_like(projected), torch.empty_like(projected), torch.empty(len(projected))
    arrays = (
        projected.detach().contiguous().numpy(),
        columns.detach().contiguous().numpy(),
        *_to_arrays(codes, dropout, len(projected)),
        out.numpy(),
        normed.numpy(),
        scales.numpy(),
    )
    run_on_threads(lambda _, a, b: _norm_relu(a, b, *arrays), len(out), _threads(out))
    return out, normed, scales


def norm_relu_backward(
    grad: Tensor, normed: Tensor, scales: Tensor, codes: Tensor | None, dropout: Tensor | None, n_columns: int
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to projected [cells, hidden] and columns [n_columns, hidden]."""
    to, n_threads = torch.empty_like(normed), _threads(normed)
    # each thread sums into its own table, so that the order of the sums depends only on the number of threads
    tables = torch.zeros(n_threads, n_columns, normed.shape[1])
    arrays = (
        grad.contiguous().numpy(),
        normed.numpy(),
        scales.numpy(),
        *_to_arrays(codes, dropout, len(normed)),
        to.numpy(),
    )
    run_on_threads(lambda k, a, b: _norm_relu_backward(a, b, *arrays, tables[k].numpy()), len(to), n_threads)
    return to, tables[0] if n_threads == 1 else tables.sum(0)


def _to_arrays(codes: Tensor | None, dropout: Tensor | None, n_cells: int) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.zeros(n_cells, np.int64) if codes is None else codes.numpy(),
        np.empty((0, 0), np.float32) if dropout is None else dropout.contiguous().numpy(),
    )


def _threads(values: Tensor) -> int:
    return torch.get_num_threads() if values.numel() > FEW_VALUES else 1


@njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
def _norm_relu(
    first: int,
    last: int,
    projected: np.ndarray,
    columns: np.ndarray,
    codes: np.ndarray,
    dropout: np.ndarray,
    out: np.ndarray,
    normed: np.ndarray,
    scales: np.ndarray,
) -> None:
    n = projected.shape[1]
    for cell in range(first, last):
        given, column, values, result = projected[cell], columns[codes[cell]], normed[cell], out[cell]
        total, squares = f32(0), f32(0)
        for j in range(n):
            values[j] = given[j] + column[j]
        for j in range(n):
            total += values[j]
        mean = total / f32(n)
        for j in range(n):
            values[j] -= mean
        for j in range(n):
            squares += values[j] * values[j]
        scale = f32(1 / math.sqrt(squares / n + EPSILON))
        scales[cell] = scale
        for j in range(n):
            value = values[j] * scale
            values[j] = value
            result[j] = f32(0) if value <= 0 else value  # NaN stays NaN
        if len(dropout):
            factors = dropout[cell]
            for j in range(n):
                result[j] *= factors[j]


@njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
def _norm_relu_backward(
    first: int,
    last: int,
    grad: np.ndarray,
    normed: np.ndarray,
    scales: np.ndarray,
    codes: np.ndarray,
    dropout: np.ndarray,
    to: np.ndarray,
    table: np.ndarray,
) -> None:
    n = grad.shape[1]
    for cell in range(first, last):
        given, values, result, sums = grad[cell], normed[cell], to[cell], table[codes[cell]]
        if len(dropout):
            factors = dropout[cell]
            for j in range(n):
                result[j] = given[j] * factors[j]
        else:
            for j in range(n):
                result[j] = given[j]
        total, product = f32(0), f32(0)
        for j in range(n):
            result[j] = f32(0) if values[j] <= 0 else result[j]
        for j in range(n):
            total += result[j]
            product += result[j] * values[j]
        total, product, scale = total / f32(n), product / f32(n), scales[cell]
        for j in range(n):
            slope = (result[j] - total - values[j] * product) * scale
            result[j] = slope
            sums[j] += slope
