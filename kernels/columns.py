"""A column of a parameter for each cell, by its code of a covariate; gradients are the same in every run."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from atlasvi.kernels.backends import choose_backend, load_hidden


def take_columns(columns: Tensor, codes: Tensor) -> Tensor:
    """columns[codes]: [cells, hidden] from columns [categories, hidden] and codes int64 [cells]; differentiable.

    On a GPU, torch's own gradient is summed in no fixed order; that of 'triton' is.
    """
    if choose_backend(columns.device, dtype=columns.dtype) != "triton":
        return F.embedding(codes, columns)
    return _TakeColumns.apply(columns, codes.contiguous())  # one column of a code matrix is not contiguous


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
        return load_hidden("triton").sum_by_code(grads[0], codes, ctx.n), None
