"""The encoder's first layer: log1p keeps zeros, so the counts stay sparse."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from atlasvi.kernels.backends import choose_backend, load_sparse
from atlasvi.kernels.reference import to_dense


def log1p_linear(
    indptr: Tensor, genes: Tensor, counts: Tensor, weight: Tensor, *, backend: str | None = None
) -> Tensor:
    """log1p(counts) @ weight for counts in CSR: [cells, hidden], differentiable in the weight.

    indptr  int32 or int64 [cells + 1], genes and counts [nnz] of any integer types; genes sorted in each cell
    weight  float32 [genes, hidden]
    backend 'cpu' or 'torch'; None chooses by device (see `choose_backend`)
    """
    name = choose_backend(weight.device, backend)
    if name == "torch":
        return torch.log1p(to_dense(indptr, genes, counts, len(weight), weight.dtype)) @ weight
    return _Log1pLinear.apply(name, indptr, genes, counts, weight)


class _Log1pLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: str, indptr: Tensor, genes: Tensor, counts: Tensor, weight: Tensor) -> Tensor:
        ctx.backend, ctx.n_genes = backend, len(weight)
        ctx.save_for_backward(indptr, genes, counts)
        return load_sparse(backend).multiply(indptr, genes, counts, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradient = load_sparse(ctx.backend).accumulate(*ctx.saved_tensors, grads[0].contiguous(), ctx.n_genes)
        return None, None, None, None, gradient
