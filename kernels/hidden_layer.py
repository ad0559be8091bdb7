"""The part of a hidden layer after its product: bias, layer norm without parameters, ReLU, dropout, in one pass."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from atlasvi.kernels.backends import choose_backend, load_hidden
from atlasvi.kernels.columns import take_columns


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
    columns    [categories, hidden]: the bias, or the bias plus a column for each category of a covariate
    codes      int64 [cells], the index of each cell's column; None: all cells use the first
    dropout    [cells, hidden], factors; None: 1
    backend    'cpu' and 'triton' do all in one pass over a cell's values; 'torch' uses torch's own operations; None
               chooses by device (see `choose_backend`)
    Layer norm as in Ba et al. 2016 (arXiv 1607.06450), over the hidden units, with epsilon 1e-5.
    """
    name = choose_backend(projected.device, backend, projected.dtype)
    if name != "torch":
        codes, dropout = (None if given is None else given.contiguous() for given in (codes, dropout))
        return _NormRelu.apply(name, projected, columns, codes, dropout)
    out = projected + (columns[0] if codes is None else take_columns(columns, codes))
    out = F.relu(F.layer_norm(out, out.shape[-1:]))
    return out if dropout is None else out * dropout


class _NormRelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, backend: str, projected: Tensor, columns: Tensor, codes: Tensor | None, dropout: Tensor | None
    ) -> Tensor:
        out, normed, scales = load_hidden(backend).norm_relu(projected, columns, codes, dropout)
        ctx.backend, ctx.n_columns = backend, len(columns)
        ctx.save_for_backward(normed, scales, codes, dropout)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        normed, scales, codes, dropout = ctx.saved_tensors
        backward = load_hidden(ctx.backend).norm_relu_backward
        return None, *backward(grads[0], normed, scales, codes, dropout, ctx.n_columns), None, None
