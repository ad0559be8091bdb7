"""The part of a hidden layer after its product, by Triton: columns, layer norm, ReLU, dropout; few cells a program.

Forward and backward are one kernel each. The gradient of the columns is the product of the cells' one-hot codes with
the gradient of the cells, in chunks of cells whose sums are then added up: no atomics, the same sums in every run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from atlasvi.kernels.triton_sparse import device_of

EPSILON = tl.constexpr(1e-5)
ROWS = 4  # cells of a program
CHUNK, COLUMNS = 64, 16  # cells, and columns, of a program that sums by column


def norm_relu(
    projected: Tensor, columns: Tensor, codes: Tensor | None, dropout: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """relu(layer_norm(projected + columns[codes])) * dropout, the normalised values, and 1 / deviation of each cell."""
    projected, columns = projected.contiguous(), columns.contiguous()
    n_cells, n_hidden = projected.shape
    out, normed, scales = torch.empty_like(projected), torch.empty_like(projected), projected.new_empty(n_cells)
    with device_of(projected):
        _forward_kernel[(triton.cdiv(n_cells, ROWS),)](
            projected, columns, projected if codes is None else codes, projected if dropout is None else dropout,
            out, normed, scales, n_cells, n_hidden, codes is not None, dropout is not None, ROWS,
            triton.next_power_of_2(n_hidden), num_warps=4,
        )  # fmt: skip
    return out, normed, scales


def norm_relu_backward(
    grad: Tensor, normed: Tensor, scales: Tensor, codes: Tensor | None, dropout: Tensor | None, n_columns: int
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to `projected` [cells, hidden] and `columns`, from the gradient of the output."""
    grad = grad.contiguous()
    n_cells, n_hidden = grad.shape
    projected_grad = torch.empty_like(grad)
    with device_of(grad):
        _backward_kernel[(triton.cdiv(n_cells, ROWS),)](
            grad, normed, scales, grad if dropout is None else dropout, projected_grad, n_cells, n_hidden,
            dropout is not None, ROWS, triton.next_power_of_2(n_hidden), num_warps=4,
        )  # fmt: skip
    return projected_grad, sum_by_code(projected_grad, codes, n_columns)


def sum_by_code(values: Tensor, codes: Tensor | None, n: int) -> Tensor:
    """float32 [n, hidden]: sums of values [cells, hidden] over the cells of each code; None: all cells have code 0."""
    values = values.contiguous()
    n_cells, n_hidden = values.shape
    chunks, block = triton.cdiv(n_cells, CHUNK), min(triton.next_power_of_2(max(n_hidden, 16)), 128)
    parts = values.new_empty(chunks, n, n_hidden)
    with device_of(values):
        _sum_kernel[(chunks, triton.cdiv(n, COLUMNS), triton.cdiv(n_hidden, block))](
            values, values if codes is None else codes, parts, n_cells, n, n_hidden, codes is not None, CHUNK, COLUMNS,
            block, num_warps=4,
        )  # fmt: skip
    return parts.sum(0)


@triton.jit(do_not_specialize=["n_cells"])
def _sum_kernel(
    values,
    codes,
    parts,
    n_cells,
    n,
    n_hidden,
    CODES: tl.constexpr,
    CHUNK: tl.constexpr,
    COLUMNS: tl.constexpr,
    HIDDEN: tl.constexpr,
):
    chunk = tl.program_id(0)
    cell = chunk * CHUNK + tl.arange(0, CHUNK)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    h = tl.program_id(2) * HIDDEN + tl.arange(0, HIDDEN)
    inside = (cell < n_cells)[:, None] & (h < n_hidden)[None, :]
    rows = tl.load(values + cell.to(tl.int64)[:, None] * n_hidden + h[None, :], mask=inside, other=0.0)
    code = tl.zeros([CHUNK], tl.int64)
    if CODES:
        code = tl.load(codes + cell, mask=cell < n_cells, other=0)
    one_hot = tl.where(code[None, :] == column[:, None], 1.0, 0.0)
    sums = tl.dot(one_hot, rows, input_precision="ieee")
    place = (chunk.to(tl.int64) * n + column)[:, None] * n_hidden + h[None, :]
    tl.store(parts + place, sums, mask=(column < n)[:, None] & (h < n_hidden)[None, :])


@triton.jit(do_not_specialize=["n_cells"])
def _forward_kernel(
    projected,
    columns,
    codes,
    dropout,
    out,
    normed,
    scales,
    n_cells,
    n_hidden,
    CODES: tl.constexpr,
    DROPOUT: tl.constexpr,
    ROWS: tl.constexpr,
    HIDDEN: tl.constexpr,
):
    cell = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    h = tl.arange(0, HIDDEN)
    inside = (cell < n_cells)[:, None] & (h < n_hidden)[None, :]
    place = cell.to(tl.int64)[:, None] * n_hidden + h[None, :]
    x = tl.load(projected + place, mask=inside, other=0.0)
    if CODES:
        code = tl.load(codes + cell, mask=cell < n_cells, other=0)
        x += tl.load(columns + code[:, None] * n_hidden + h[None, :], mask=inside, other=0.0)
    else:
        x += tl.load(columns + h, mask=h < n_hidden, other=0.0)[None, :]
    mean = tl.sum(x, 1) / n_hidden
    centred = tl.where(inside, x - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / n_hidden + EPSILON)
    value = centred * scale[:, None]
    tl.store(normed + place, value, mask=inside)
    tl.store(scales + cell, scale, mask=cell < n_cells)
    value = tl.where(value > 0, value, tl.where(value == value, 0.0, value))  # NaN stays NaN
    if DROPOUT:
        value *= tl.load(dropout + place, mask=inside, other=0.0)
    tl.store(out + place, value, mask=inside)


@triton.jit(do_not_specialize=["n_cells"])
def _backward_kernel(
    grad,
    normed,
    scales,
    dropout,
    projected_grad,
    n_cells,
    n_hidden,
    DROPOUT: tl.constexpr,
    ROWS: tl.constexpr,
    HIDDEN: tl.constexpr,
):
    """Layer norm's gradient: scale * (g - mean(g) - normed * mean(g * normed)), g the gradient of `normed`."""
    cell = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    h = tl.arange(0, HIDDEN)
    inside = (cell < n_cells)[:, None] & (h < n_hidden)[None, :]
    place = cell.to(tl.int64)[:, None] * n_hidden + h[None, :]
    g = tl.load(grad + place, mask=inside, other=0.0)
    value = tl.load(normed + place, mask=inside, other=0.0)
    if DROPOUT:
        g *= tl.load(dropout + place, mask=inside, other=0.0)
    g = tl.where(value <= 0, 0.0, g)
    mean, along = tl.sum(g, 1) / n_hidden, tl.sum(g * value, 1) / n_hidden
    scale = tl.load(scales + cell, mask=cell < n_cells, other=0.0)
    tl.store(projected_grad + place, scale[:, None] * (g - mean[:, None] - value * along[:, None]), mask=inside)
