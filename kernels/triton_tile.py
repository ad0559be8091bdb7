"""A sweep over cells by Triton: products and kernels, launched for one tile of logits after another.

Nothing waits for the device and no size depends on values in a tensor, so a CUDA graph can capture a sweep. `indices`
and `counts` may be longer than indptr[-1]: the rest is ignored.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from atlasvi.kernels import triton_project, triton_sparse
from atlasvi.kernels.triton_likelihood import nonzeros_kernel
from atlasvi.kernels.triton_slopes import add_rows_kernel, slopes_kernel, zeros_kernel

TILE_BYTES = (
    2**29
)  # of logits of all heads: smaller tiles leave the device idle between kernels, larger ones gain nothing
FEW_CELLS = 2_048  # up to so many, programs of zeros and slopes have GROUPS[0] cells, so that there are more programs
GROUPS = 8, 32
BLOCK, WARPS = 1024, 4  # genes and warps of a program of zeros or slopes
STAGES = 3  # cells whose logits are being loaded meanwhile
NONZEROS, NONZERO_WARPS = 1024, 4  # nonzeros at a time, and warps of a program, which has one cell
LARGE = 128


class Sweep:
    """Losses and slopes of the cells of a minibatch, by tiles; the same sums in the same order in every run."""

    def __init__(
        self,
        options: Any,
        n_genes: int,
        table: Tensor | None,
        weights: Tensor | None,
        loss: Tensor,
        table_grad: Tensor | None,
        library_grad: Tensor | None = None,
        bias_grads: list[Tensor | None] | None = None,
    ) -> None:
        """`loss` float32 [cells] is written; `table_grad` (like `table`, [rows, genes] or [genes]), of zeros, added to.

        weights       float32 [cells] of the gradients; None: no gradients
        library_grad  float32 [cells], written: weight * d nll / d library
        bias_grads    None or float32 [genes] for logits, log theta and dropouts, written: sums of their gradients over
                      all cells
        """
        self.options, self.n_genes, self.weights = options, n_genes, weights
        self.table = None if table is None else table.contiguous()
        self.library, self.theta_rows = options.library, options.theta_rows
        self.loss, self.table_grad, self.library_grad = loss, table_grad, library_grad
        self.bias_grads = bias_grads or [None, None, None]
        self.n_blocks = triton.cdiv(n_genes + 15, BLOCK)  # a row may be padded
        new, n_cells, n_nonzeros = loss.new_empty, len(loss), max(len(options.cells.indices), 1)
        self.offsets, self.scales, self.slope_sums = new(3, n_cells)
        self.loss_parts, self.slope_parts = new(2, n_cells, self.n_blocks)
        self.softmax_parts: Tensor | None = None  # of the tile that was projected last
        # for each nonzero: gradients of logits, of log theta, of dropouts; proportions
        self.by_logit, self.by_theta, self.by_dropout, self.proportions = new(4, n_nonzeros)
        self.large = new(n_nonzeros, dtype=torch.int32)
        self.sums_genes = table is not None and weights is not None and self.theta_rows is None
        tile_cells = min(self.tile_cells(n_genes, 1), n_cells)
        self.group = GROUPS[tile_cells > FEW_CELLS]
        n_groups = triton.cdiv(tile_cells, self.group)
        sums = [self.sums_genes, *(grad is not None for grad in self.bias_grads)]
        self.parts = [new(n_groups if wanted else 0, n_genes) for wanted in sums]  # the first tile writes them

    @staticmethod
    def tile_cells(n_genes: int, n_heads: int) -> int:
        """Number of cells in a tile if `n_heads` products are computed."""
        return max(TILE_BYTES // (4 * n_genes * max(n_heads, 1)) // GROUPS[1], 1) * GROUPS[1]

    @staticmethod
    def allocate(number: int, n_cells: int, n_genes: int, like: Tensor, dtype: torch.dtype) -> Tensor:
        """[cells, genes], uninitialised; rows begin at multiples of 16 elements, for wide loads."""
        return like.new_empty(n_cells, triton.cdiv(n_genes, 16) * 16, dtype=dtype)[:, :n_genes]

    def project(self, number: int, hidden: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> Tensor:
        """Logits of the next tile; for head 0 also the parts of its softmax."""
        if number > 0 or not self.options.softmax:
            return triton_project.project(hidden, weight, bias, out)
        self.softmax_parts = self.loss.new_empty(2, len(hidden), triton_project.count_parts(self.n_genes))
        return triton_project.project(hidden, weight, bias, out, *self.softmax_parts)

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
        keep    logits stay unchanged; slopes[0], float32, is overwritten in any case
        """
        head, log_theta, dropout = logits
        assert head is not None
        options, cells, shape = self.options, self.options.cells, (last - first, self.n_genes)
        out, theta_out, dropout_out = slopes or logits
        marked = out if keep else head
        theta, theta_kind, theta_rows = log_theta, "cells", cells.indptr
        if log_theta is None:
            theta, theta_kind = self.table, "none" if self.table is None else "gene"
        if self.theta_rows is not None:
            theta_kind, theta_rows = "rows", self.theta_rows[first:last]
            theta_out = self.allocate(0, *shape, head, torch.float32) if self.weights is not None else None
        assert marked is not None
        assert out is not None
        # a kernel needs some tensor even for arguments that it does not use
        theta, theta_out, dropout, dropout_out = (
            head if tensor is None else tensor for tensor in (theta, theta_out, dropout, dropout_out)
        )
        weights = (self.loss if self.weights is None else self.weights)[first:last]
        library, indptr = self.library[first:last], cells.indptr[first : last + 1]
        per_cell = self.offsets[first:last], self.scales[first:last]
        slope_sums, loss_parts, slope_parts = (
            tensor[first:last] for tensor in (self.slope_sums, self.loss_parts, self.slope_parts)
        )
        maxima, sums = (head, head) if self.softmax_parts is None else self.softmax_parts
        n_parts = 0 if self.softmax_parts is None else maxima.shape[1]
        strides = theta.stride(0) if theta.dim() == 2 else 0, dropout.stride(0)
        out_strides = theta_out.stride(0), dropout_out.stride(0), out.stride(0)
        kinds = options.likelihood, options.softmax, theta_kind
        gradients, bias = self.weights is not None, self.bias_grads[0] is not None
        blocks = self.n_blocks, triton.cdiv(shape[0], self.group)
        rounded = triton.next_power_of_2(self.n_blocks)
        with triton_sparse.device_of(head):
            nonzeros_kernel[(shape[0],)](
                head, marked, theta, theta_rows, dropout, indptr, cells.indices, cells.counts, library, weights,
                self.loss[first:last], *per_cell, slope_sums, self.by_logit, self.proportions, self.by_theta,
                self.by_dropout, self.large, maxima, sums, self.n_genes, head.stride(0), marked.stride(0), *strides,
                n_parts, *kinds, keep, gradients, triton.next_power_of_2(n_parts) if n_parts else 0, BLOCK, NONZEROS,
                LARGE, num_warps=NONZERO_WARPS, enable_fp_fusion=True,
            )  # fmt: skip
            zeros_kernel[blocks](
                marked, theta, theta_rows, dropout, library, weights, *per_cell, indptr, self.by_theta, loss_parts,
                slope_parts, self.parts[0], shape[0], self.n_genes, marked.stride(0), *strides, self.n_blocks, *kinds,
                gradients, first > 0, self.group, BLOCK, STAGES, num_warps=WARPS, enable_fp_fusion=True,
            )  # fmt: skip
            if not gradients:
                return
            slopes_kernel[blocks](
                marked, theta, theta_rows, dropout, library, weights, *per_cell, slope_sums, slope_parts, indptr,
                self.by_logit, self.proportions, self.by_theta, self.by_dropout, out, theta_out, dropout_out,
                *self.parts[1:], shape[0], self.n_genes, marked.stride(0), *strides, *out_strides, self.n_blocks,
                *kinds, bias, first > 0, self.group, BLOCK, rounded, STAGES, num_warps=WARPS, enable_fp_fusion=True,
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
        """Add the sums over tiles to `loss` and the gradients."""
        self.loss += self.loss_parts.sum(1)
        if self.library_grad is not None and self.weights is not None:
            by_log_library = self.slope_sums + self.slope_parts.sum(1)
            torch.mul(by_log_library, self.weights / self.library, out=self.library_grad)
        for grad, parts in zip((self.table_grad if self.sums_genes else None, *self.bias_grads), self.parts):
            if grad is not None:
                torch.sum(parts, 0, out=grad.view(-1))
