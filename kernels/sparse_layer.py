"""The encoder's first layer: log1p keeps zeros, so the counts stay sparse."""

import warnings
from typing import Any

import torch
from torch import Tensor

with warnings.catch_warnings():  # torch says once a process that CSR is in beta: nothing that a user can act on
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
    torch.zeros(1, 1).to_sparse_csr()


def log1p_linear(indptr: Tensor, genes: Tensor, counts: Tensor, weight: Tensor) -> Tensor:
    """log1p(counts) @ weight for counts in CSR: [cells, hidden], differentiable in the weight.

    indptr  int64 [cells + 1], genes int64 [nnz], counts float32 [nnz]
    weight  float32 [genes, hidden]
    """
    return _Log1pLinear.apply(indptr, genes, counts, weight)


class _Log1pLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, indptr: Tensor, genes: Tensor, counts: Tensor, weight: Tensor) -> Tensor:
        inputs = torch.sparse_csr_tensor(
            indptr, genes, torch.log1p(counts), (len(indptr) - 1, len(weight)), check_invariants=False
        )
        ctx.inputs = inputs
        return inputs @ weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # transposed once and multiplied in CSR: several times faster on a CPU than torch's embedding_bag gradient
        return None, None, None, ctx.inputs.t().to_sparse_csr() @ grads[0]
