"""The encoder's first layer, which keeps counts and log1p of counts sparse."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from atlasvi.kernels.backends import choose_backend, load_sparse
from atlasvi.kernels.gene_order import GeneOrder
from atlasvi.kernels.reference import to_dense


def log1p_linear(
    indptr: Tensor,
    genes: Tensor,
    counts: Tensor,
    weight: Tensor,
    *,
    raw: bool = False,
    order: GeneOrder | None = None,
    backend: str | None = None,
) -> Tensor:
    """log1p(counts) @ weight for counts in CSR: [cells, hidden], differentiable in the weight.

    indptr  int32 or int64 [cells + 1], genes and counts [nnz] of any integer types; genes sorted in each cell. Both may
            be longer than indptr[-1]; the rest is ignored. Counts of a float type may be any numbers above -1, and
            are computed by plain torch
    weight  float32 [genes, hidden]
    raw     counts @ weight, without the logarithm
    order   see `order_by_gene`; None: computed in the backward pass if needed
    backend 'cpu', 'triton' or 'torch'; None chooses by device (see `choose_backend`)
    """
    name = choose_backend(weight.device, backend, weight.dtype)
    if name == "torch" or counts.is_floating_point():
        dense = to_dense(indptr, genes, counts, len(weight), weight.dtype)
        return (dense if raw else torch.log1p(dense)) @ weight
    return _Log1pLinear.apply(name, raw, order, indptr.contiguous(), genes.contiguous(), counts.contiguous(), weight)


def log1p_linear_transposed(
    indptr: Tensor,
    genes: Tensor,
    counts: Tensor,
    values: Tensor,
    n_genes: int,
    *,
    raw: bool = False,
    backend: str | None = None,
) -> Tensor:
    """log1p(counts).T @ values, or counts.T @ values if raw, for values [cells, hidden]: [genes, hidden].

    The arguments are those of `log1p_linear`, of which this is the gradient. It is not differentiable itself.
    """
    name = choose_backend(values.device, backend, values.dtype)
    if name == "torch" or counts.is_floating_point():
        dense = to_dense(indptr, genes, counts, n_genes, values.dtype)
        return (dense if raw else torch.log1p(dense)).T @ values
    csr = indptr.contiguous(), genes.contiguous(), counts.contiguous()
    return load_sparse(name).accumulate(*csr, values.detach().contiguous(), n_genes, raw)


class _Log1pLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        backend: str,
        raw: bool,
        order: GeneOrder | None,
        indptr: Tensor,
        genes: Tensor,
        counts: Tensor,
        weight: Tensor,
    ) -> Tensor:
        ctx.backend, ctx.raw, ctx.order, ctx.n_genes = backend, raw, order, len(weight)
        ctx.save_for_backward(indptr, genes, counts)
        return load_sparse(backend).multiply(indptr, genes, counts, weight, raw)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        given = *ctx.saved_tensors, grads[0].contiguous(), ctx.n_genes, ctx.raw
        order = {"order": ctx.order} if ctx.order is not None else {}
        return *[None] * 6, load_sparse(ctx.backend).accumulate(*given, **order)
