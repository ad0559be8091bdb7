"""What follows the product of a hidden layer: bias, layer norm without parameters, ReLU, dropout, in one pass."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from atlasvi.kernels.backends import choose_backend


def norm_relu(
    projected: Tensor,
    columns: Tensor,
    codes: Tensor | None = None,
    dropout: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """relu(layer_norm(projected + columns[codes])) * dropout: [cells, hidden], differentiable in the first two.

    projected  [cells, hidden]; float32 for 'cpu'
    columns    [categories, hidden]: the bias, or the bias and a column for each category of a covariate
    codes      int64 [cells], which of them is a cell's; None: the first is everyone's
    dropout    [cells, hidden], what to multiply with; None: 1
    backend    'cpu', where all is one pass over a cell's values while they are in registers and the nearest cache;
               'triton' and 'torch' are torch's own operations; None chooses by device (see `choose_backend`)
    Layer norm as in Ba et al. 2016 (arXiv 1607.06450), over the hidden units, with epsilon 1e-5.
    """
    if choose_backend(projected.device, backend, projected.dtype) == "cpu":
        return _NormRelu.apply(projected, columns, codes, dropout)
    out = projected + (columns[0] if codes is None else F.embedding(codes, columns))
    # indexing instead of F.embedding would add up its gradient in any order
    out = F.relu(F.layer_norm(out, out.shape[-1:]))
    return out if dropout is None else out * dropout


class _NormRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor, columns: Tensor, codes: Tensor | None, dropout: Tensor | None) -> Tensor:
        from atlasvi.kernels.cpu_hidden import norm_relu

        out, normed, scales = norm_relu(projected, columns, codes, dropout)
        ctx.n_columns = len(columns)
        ctx.save_for_backward(normed, scales, codes, dropout)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from atlasvi.kernels.cpu_hidden import norm_relu_backward

        normed, scales, codes, dropout = ctx.saved_tensors
        return *norm_relu_backward(grads[0], normed, scales, codes, dropout, ctx.n_columns), None, None
