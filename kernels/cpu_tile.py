"""A tile of logits on the CPU: its cells shared out among threads."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from atlasvi.kernels.cpu_likelihood import make_sweep, run_on_threads
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
    slopes: Tensor | None = None,
) -> None:
    """Losses of cells [first, last) into `loss`; their logits become slopes, `table_grad` is added to.

    logits  float32 [last - first, genes] each: of genes, of log theta for each cell (or None), of dropouts (or None)
    slopes  where those of genes go, if the logits are to be kept
    """
    head, theta_logits, dropout = (None if tensor is None else tensor.detach().numpy() for tensor in logits)
    assert head is not None
    n_threads, per_cell = torch.get_num_threads(), theta_logits is not None
    sweep = make_sweep(options.likelihood, options.softmax, per_cell)
    if theta_logits is None:
        theta_logits = (
            np.zeros((1, 0), np.float32) if table is None else table.detach().numpy().reshape(-1, head.shape[1])
        )
    rows = np.zeros(last - first, np.int64)
    if options.theta_rows is not None:
        rows = options.theta_rows[first:last].numpy()
    no_rows = np.zeros((0, 0), np.float32)
    # each thread adds to a table of its own, in an order that depends on nothing but their number
    tables = np.zeros((n_threads, *theta_logits.shape) if not per_cell else (n_threads, 1, 0), np.float32)
    values = np.empty(last - first)
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
    )
    target = head if slopes is None else slopes.numpy()
    run_on_threads(lambda k, a, b: sweep(a, b, head, target, *arguments, tables[k]), last - first, n_threads)
    loss[first:last] = torch.from_numpy(values)
    if table_grad is not None:
        table_grad += torch.from_numpy(tables.sum(0)).view_as(table_grad)
