"""A tile of logits on the CPU: its cells are split among threads."""

import sys
import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atlasvi.kernels.cpu_likelihood import make_sweep
from atlasvi.kernels.cpu_threads import run_on_threads
from atlasvi.kernels.reference import as_integers


def sweep_tile(
    options: Any,
    first: int,
    last: int,
    logits: list[Tensor | None],
    table: Tensor | None,
    weights: Tensor | None,
    loss: Tensor,
    table_grad: Tensor | None,
    *,
    library_grad: Tensor | None = None,
    slopes: Tensor | None = None,
    bias: Tensor | None = None,
) -> None:
    """Write losses of cells [first, last) to `loss`, turn their logits into slopes, and add to `table_grad`.

    logits  float32 [last - first, genes] each: of genes, of log theta for each cell (or None), of dropouts (or None)
    slopes  where the slopes of genes go, if their logits must stay unchanged
    library_grad  float32 like `loss`, written: weight * d nll / d library
    bias    float32 [genes], to be added to the logits of genes
    """
    head, theta_logits, dropout = (None if tensor is None else tensor.detach().numpy() for tensor in logits)
    assert head is not None
    n_threads, per_cell = torch.get_num_threads(), theta_logits is not None
    sweep = make_sweep(options.likelihood, options.softmax, per_cell)
    if theta_logits is None:
        theta_logits = (
            np.zeros((1, 0), np.float32)
            if table is None
            else table.detach().contiguous().numpy().reshape(-1, head.shape[1])
        )
    rows = np.zeros(last - first, np.int64)
    if options.theta_rows is not None:
        rows = options.theta_rows[first:last].numpy()
    no_rows = np.zeros((0, 0), np.float32)
    # each thread sums into its own table, so that the order of the sums depends only on the number of threads
    tables = np.zeros((n_threads, *theta_logits.shape) if not per_cell else (n_threads, 1, 0), np.float32)
    values, by_library = np.empty((2, last - first))
    cells = options.cells
    arguments = (
        options.library[first:last].numpy(),
        theta_logits,
        rows,
        no_rows if dropout is None else dropout,
        cells.indptr[first : last + 1].numpy().astype(np.int64),
        cells.indices.numpy(),
        as_integers(cells.counts).numpy(),
        np.ones(last - first, np.float32) if weights is None else weights[first:last].numpy(),
        values,
        by_library,
    )
    target = head if slopes is None else slopes.numpy()
    added = np.zeros(0, np.float32) if bias is None else bias.detach().contiguous().numpy()
    run_on_threads(lambda k, a, b: sweep(a, b, head, added, target, *arguments, tables[k]), last - first, n_threads)
    loss[first:last] = torch.from_numpy(values)
    if library_grad is not None and weights is not None:
        library_grad[first:last] = torch.from_numpy(by_library) * weights[first:last] / options.library[first:last]
    if table_grad is not None:
        table_grad += torch.from_numpy(tables.sum(0)).view_as(table_grad)


# Of all logits of a tile: 1,024 cells x 24,000 genes. A product packs the weights anew for each tile, so with tiles of
# 16 MiB, which would stay in the cache, a step of 1,024 cells x 20,000 genes takes a tenth to a quarter longer.
TILE_BYTES = 96 * 2**20


class Sweep:
    """A sweep over the cells of a minibatch by tiles."""

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
        """See `sweep_tile`. bias_grads: [genes] for each of the logits, to which their gradients are added."""
        self.options, self.given, self.library_grad = options, (table, weights, loss, table_grad), library_grad
        self.bias_grads = bias_grads or [None, None, None]
        self._bias: Tensor | None = None  # of genes, if the logits of the tile still lack it

    @staticmethod
    def tile_cells(n_genes: int, n_heads: int) -> int:
        """Number of cells in a tile if `n_heads` products are computed; all cells if none is."""
        return TILE_BYTES // (4 * n_genes * n_heads) if n_heads else sys.maxsize

    @staticmethod
    def allocate(number: int, n_cells: int, n_genes: int, like: Tensor, dtype: torch.dtype) -> Tensor:
        """[cells, genes], reused by the next sweep of this thread, since new memory costs page faults."""
        kept = _TILES.__dict__.setdefault("kept", {})
        key, n = (number, dtype), n_cells * n_genes
        if key not in kept or kept[key].numel() < n:
            with torch.inference_mode(False):  # or other calls could not write to memory made in inference mode
                kept[key] = torch.empty(n, dtype=dtype)
        return kept[key][:n].view(n_cells, n_genes)

    def project(self, number: int, hidden: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> Tensor:
        """hidden @ weight.T + bias into `out`: logits of the next tile; those of genes (number 0) without bias."""
        if number == 0:  # torch would write the bias into the tile first; the sweep adds it where it has the values
            self._bias = bias
            return torch.mm(hidden, weight.T, out=out)
        return torch.addmm(bias, hidden, weight.T, out=out)

    def take(
        self,
        first: int,
        last: int,
        logits: list[Tensor | None],
        *,
        keep: bool = False,
        slopes: list[Tensor | None] | None = None,
    ) -> None:
        """See `sweep_tile`. keep: logits stay unchanged, gradients go into `slopes`; else they overwrite the logits."""
        target = None
        if keep and slopes is not None:
            target = slopes[0]
            logits = [logits[0], *(None if t is None else _copy(t, to) for t, to in zip(logits[1:], slopes[1:]))]
        named: Any = {"library_grad": self.library_grad, "slopes": target, "bias": self._bias}
        sweep_tile(self.options, first, last, logits, *self.given, **named)
        for grad, tile in zip(self.bias_grads, logits):
            if grad is not None and tile is not None:
                grad += tile.sum(0)

    def finish(self) -> None:
        """Nothing remains to be done."""


def _copy(tensor: Tensor, to: Tensor | None) -> Tensor:
    return tensor.detach().clone() if to is None else to.copy_(tensor.detach())


_TILES = threading.local()
