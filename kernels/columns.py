"""A column of a parameter for each cell, by the code of a covariate; gradients are the same at every run."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from atlasvi.kernels.products import without_tf32


def take_columns(columns: Tensor, codes: Tensor) -> Tensor:
    """columns[codes]: [cells, hidden] of columns [categories, hidden] and codes int64 [cells]; differentiable.

    Torch's own gradient adds up in any order on a GPU; this one's order is fixed.
    """
    return _TakeColumns.apply(columns, codes) if columns.is_cuda else F.embedding(codes, columns)


def sum_by_code(values: Tensor, codes: Tensor | None, n: int) -> Tensor:
    """[n, hidden]: sums of values [cells, hidden] over the cells of each code; None: all cells are of code 0."""
    cells = (
        torch.arange(n, device=values.device)[:, None] == (torch.zeros_like(values[:, 0]) if codes is None else codes)
    ).to(values.dtype)
    with without_tf32():
        return cells @ values


class _TakeColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, columns: Tensor, codes: Tensor) -> Tensor:
        ctx.n = len(columns)
        ctx.save_for_backward(codes)
        return F.embedding(codes, columns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (codes,) = ctx.saved_tensors
        return sum_by_code(grads[0], codes, ctx.n), None
