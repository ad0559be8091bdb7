"""Products of (log1p of) sparse counts with dense matrices, by Triton.

Sums over cells visit the nonzeros sorted by gene (a stable sort): no atomics, the same sums in every run. Nothing waits
for the device; elements after indptr[-1] are ignored.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from atlasvi.kernels.gene_order import GeneOrder


def order_by_gene(indptr: Tensor, genes: Tensor, n_genes: int) -> GeneOrder:
    """The nonzeros sorted by gene, and for one gene in the order of their cells."""
    # keys of half the width need half the passes; elements after indptr[-1] come last
    dtype = torch.int16 if n_genes < torch.iinfo(torch.int16).max else torch.int32
    keys = indptr.new_full((len(genes),), n_genes, dtype=dtype)
    cells = torch.empty_like(keys, dtype=torch.int32)
    with device_of(keys):
        _key_kernel[(len(indptr) - 1,)](indptr, genes, keys, cells, 512, num_warps=4)
    keys, places = keys.sort(stable=True)
    starts = torch.searchsorted(keys, torch.arange(n_genes + 1, dtype=dtype, device=keys.device))
    return GeneOrder(places, starts, cells)


def multiply(indptr: Tensor, genes: Tensor, counts: Tensor, weight: Tensor, raw: bool = False) -> Tensor:
    """log1p(counts) @ weight, or counts @ weight if raw: float32 [cells, hidden]."""
    weight = weight.contiguous()
    n_cells, n_hidden = len(indptr) - 1, weight.shape[1]
    out = weight.new_empty(n_cells, n_hidden)
    block = min(triton.next_power_of_2(n_hidden), 128)
    with device_of(weight):
        _multiply_kernel[(n_cells, triton.cdiv(n_hidden, block))](
            indptr, genes, counts, weight, out, n_hidden, raw, 32, block, num_warps=4
        )
    return out


def accumulate(
    indptr: Tensor,
    genes: Tensor,
    counts: Tensor,
    grad: Tensor,
    n_genes: int,
    raw: bool = False,
    order: GeneOrder | None = None,
) -> Tensor:
    """log1p(counts).T @ grad, or counts.T @ grad if raw: float32 [genes, hidden]."""
    order = order or order_by_gene(indptr, genes, n_genes)
    out, n_hidden = grad.new_empty(n_genes, grad.shape[1]), grad.shape[1]
    block = min(triton.next_power_of_2(n_hidden), 128)
    with device_of(grad):
        _accumulate_kernel[(n_genes, triton.cdiv(n_hidden, block))](
            order.places, order.starts, order.cells, counts, grad, out, n_hidden, raw, 16, block, num_warps=4
        )
    return out


def device_of(tensor: Tensor) -> Any:
    """Make the device of a tensor the current one, where Triton launches; does nothing in its interpreter."""
    return torch.cuda.device(tensor.device.index if tensor.is_cuda else -1)


@triton.jit
def _key_kernel(indptr, genes, keys, cells, BLOCK: tl.constexpr):
    cell = tl.program_id(0)
    end = tl.load(indptr + cell + 1)
    for start in range(tl.load(indptr + cell), end, BLOCK):
        k = start + tl.arange(0, BLOCK)
        tl.store(keys + k, tl.load(genes + k, mask=k < end).to(keys.dtype.element_ty), mask=k < end)
        tl.store(cells + k, tl.zeros([BLOCK], tl.int32) + cell, mask=k < end)


@triton.jit
def _value_of(counts, RAW: tl.constexpr):
    value = counts.to(tl.float32)
    return value if RAW else tl.log(1.0 + value)


@triton.jit
def _multiply_kernel(
    indptr, genes, counts, weight, out, n_hidden, RAW: tl.constexpr, BLOCK: tl.constexpr, HIDDEN: tl.constexpr
):
    cell = tl.program_id(0)
    h = tl.program_id(1) * HIDDEN + tl.arange(0, HIDDEN)
    sums = tl.zeros([BLOCK, HIDDEN], tl.float32)
    end = tl.load(indptr + cell + 1)
    for start in range(tl.load(indptr + cell), end, BLOCK):
        k = start + tl.arange(0, BLOCK)
        gene = tl.load(genes + k, mask=k < end, other=0).to(tl.int64)
        value = _value_of(tl.load(counts + k, mask=k < end, other=0), RAW)
        inside = (k < end)[:, None] & (h < n_hidden)[None, :]
        sums += value[:, None] * tl.load(weight + gene[:, None] * n_hidden + h[None, :], mask=inside, other=0.0)
    tl.store(out + cell.to(tl.int64) * n_hidden + h, tl.sum(sums, 0), mask=h < n_hidden)


@triton.jit
def _accumulate_kernel(
    places, starts, cells, counts, grad, out, n_hidden, RAW: tl.constexpr, BLOCK: tl.constexpr, HIDDEN: tl.constexpr
):
    gene = tl.program_id(0)
    h = tl.program_id(1) * HIDDEN + tl.arange(0, HIDDEN)
    sums = tl.zeros([BLOCK, HIDDEN], tl.float32)
    end = tl.load(starts + gene + 1)
    for start in range(tl.load(starts + gene), end, BLOCK):
        k = start + tl.arange(0, BLOCK)
        place = tl.load(places + k, mask=k < end, other=0)
        cell = tl.load(cells + place, mask=k < end, other=0).to(tl.int64)
        value = _value_of(tl.load(counts + place, mask=k < end, other=0), RAW)
        inside = (k < end)[:, None] & (h < n_hidden)[None, :]
        sums += value[:, None] * tl.load(grad + cell[:, None] * n_hidden + h[None, :], mask=inside, other=0.0)
    tl.store(out + gene.to(tl.int64) * n_hidden + h, tl.sum(sums, 0), mask=h < n_hidden)
