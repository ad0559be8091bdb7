"""A sweep over cells by Triton: the kernels of triton_likelihood.py, launched for one tile of logits after another.

Nothing waits for the device and no size depends on what is in a tensor, so a CUDA graph can capture a sweep. `indices`
and `counts` may be longer than indptr says: what is past its end is not looked at.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from atlasvi.kernels import triton_sparse
from atlasvi.kernels.triton_likelihood import add_rows_kernel, nonzeros_kernel, slopes_kernel, zeros_kernel

TILE_BYTES = 24 * 2**20  # of logits of all heads: half the L2 cache of an H100, where the kernels find them again
GROUP = 8  # cells that a program of zeros_kernel takes one after the other
BLOCK = 2048  # genes at a time
NONZEROS = 512
LARGE = 128


class Sweep:
    """Losses and slopes of the cells of a minibatch, by tiles; the same sums in the same order at every run."""

    def __init__(
        self,
        options: Any,
        n_genes: int,
        table: Tensor | None,
        weights: Tensor | None,
        loss: Tensor,
        table_grad: Tensor | None,
    ) -> None:
        """`loss` float32 [cells] is written, `table_grad` (like `table`, [rows, genes] or [genes]) added to.

        weights float32 [cells] of the gradients; None if none are wanted
        """
        self.options, self.n_genes, self.weights = options, n_genes, weights
        self.table = None if table is None else table.contiguous()
        self.library = options.library.contiguous()
        self.loss, self.table_grad = loss, table_grad
        self.n_blocks = triton.cdiv(n_genes + 15, BLOCK)  # a row may be padded
        new, n_cells, n_nonzeros = loss.new_empty, len(loss), max(len(options.cells.indices), 1)
        self.offsets, self.scales, self.slope_sums = new(3, n_cells)
        self.loss_parts, self.slope_parts = new(2, n_cells, self.n_blocks)
        self.by_nonzero = new(4, n_nonzeros)  # slopes by logit, shares, slopes by log theta, by dropout
        self.large = new(n_nonzeros, dtype=torch.int32)
        self.sums_genes = table is not None and weights is not None and options.theta_rows is None
        n_groups = triton.cdiv(self.tile_cells(n_genes, 1), GROUP) if self.sums_genes else 0
        self.theta_parts = loss.new_zeros(n_groups, n_genes)

    @staticmethod
    def tile_cells(n_genes: int, n_heads: int) -> int:
        """Cells of a tile of `n_heads` products, or of none."""
        return max(TILE_BYTES // (4 * n_genes * max(n_heads, 1)) // GROUP, 1) * GROUP

    @staticmethod
    def allocate(number: int, n_cells: int, n_genes: int, like: Tensor, dtype: torch.dtype) -> Tensor:
        """[cells, genes], uninitialised, rows apart by a multiple of 16: that lets loads be wide."""
        return like.new_empty(n_cells, triton.cdiv(n_genes, 16) * 16, dtype=dtype)[:, :n_genes]

    def take(
        self,
        first: int,
        last: int,
        logits: list[Tensor | None],
        *,
        keep: bool = False,
        slopes: list[Tensor | None] | None = None,
    ) -> None:
        """Losses and gradients of cells [first, last).

        logits  float32 [last - first, genes]: of genes, of log theta for each cell (or None), of dropouts (or None)
        slopes  where the gradients go, in any float dtype; None: over the logits
        keep    logits stay as they are; slopes[0], float32, is written on in any case
        """
        head, log_theta, dropout = logits
        assert head is not None
        options, cells, shape = self.options, self.options.cells, (last - first, self.n_genes)
        out, theta_out, dropout_out = slopes or logits
        marked = out if keep else head
        theta, theta_kind, theta_rows = log_theta, "cells", cells.indptr
        if log_theta is None:
            theta, theta_kind = self.table, "none" if self.table is None else "gene"
        if options.theta_rows is not None:
            theta_kind, theta_rows = "rows", options.theta_rows[first:last]
            theta_out = self.allocate(0, *shape, head, torch.float32) if self.weights is not None else None
        assert marked is not None
        assert out is not None
        # a kernel that does not use a tensor is given another
        theta, theta_out, dropout, dropout_out = (
            head if tensor is None else tensor for tensor in (theta, theta_out, dropout, dropout_out)
        )
        weights = (self.loss if self.weights is None else self.weights)[first:last]
        library, indptr = self.library[first:last], cells.indptr[first : last + 1]
        per_cell = self.offsets[first:last], self.scales[first:last]
        slope_sums, loss_parts, slope_parts = (
            tensor[first:last] for tensor in (self.slope_sums, self.loss_parts, self.slope_parts)
        )
        strides = theta.stride(0) if theta.dim() == 2 else 0, dropout.stride(0)
        kinds = options.likelihood, options.softmax, theta_kind
        gradients = self.weights is not None
        with torch.cuda.device(head.device.index if head.is_cuda else -1):
            nonzeros_kernel[(shape[0],)](
                head, marked, theta, theta_rows, dropout, indptr, cells.indices, cells.counts, library, weights,
                self.loss[first:last], *per_cell, slope_sums, *self.by_nonzero, self.large,
                self.n_genes, head.stride(0), marked.stride(0), *strides, *kinds, keep, gradients, BLOCK, NONZEROS,
                LARGE, num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip
            zeros_kernel[(self.n_blocks, triton.cdiv(shape[0], GROUP))](
                marked, theta, theta_rows, dropout, library, weights, *per_cell, loss_parts, slope_parts,
                self.theta_parts, shape[0], self.n_genes, marked.stride(0), *strides, self.n_blocks, *kinds, gradients,
                GROUP, BLOCK, num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip
            if not gradients:
                return
            slopes_kernel[(shape[0],)](
                marked, theta, theta_rows, dropout, indptr, cells.indices, library, weights, *per_cell, slope_sums,
                slope_parts, *self.by_nonzero, out, theta_out, dropout_out, self.n_genes, marked.stride(0), *strides,
                theta_out.stride(0), dropout_out.stride(0), out.stride(0), self.n_blocks, *kinds, BLOCK,
                triton.next_power_of_2(self.n_blocks), NONZEROS, num_warps=8, enable_fp_fusion=True,
            )  # fmt: skip
            if theta_kind == "rows":
                self._add_rows(theta_rows, theta_out)

    def _add_rows(self, theta_rows: Tensor, theta_slopes: Tensor) -> None:
        assert self.table_grad is not None
        n_rows = len(self.table_grad)
        rows, places = theta_rows.sort(stable=True)
        starts = torch.searchsorted(rows, torch.arange(n_rows + 1, dtype=rows.dtype, device=rows.device))
        add_rows_kernel[(n_rows, triton.cdiv(self.n_genes, BLOCK))](
            theta_slopes, places, starts, self.table_grad, self.n_genes, theta_slopes.stride(0), BLOCK, num_warps=4
        )

    def finish(self) -> None:
        """What is summed over tiles goes into `loss` and `table_grad`."""
        self.loss += self.loss_parts.sum(1)
        if self.sums_genes:
            assert self.table_grad is not None
            self.table_grad += self.theta_parts.sum(0).view_as(self.table_grad)
            cells = self.options.cells
            order = cells.order or triton_sparse.order_by_gene(cells.indptr, cells.indices, self.n_genes)
            triton_sparse.add_by_gene(order, self.by_nonzero[2], self.table_grad)
