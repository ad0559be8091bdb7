"""From the decoder's hidden state to counts drawn from the likelihood, in CSR; no dense matrix of all cells is made."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from atlasvi.kernels import plain_counts
from atlasvi.kernels.backends import choose_backend, load_sampler
from atlasvi.kernels.counter_random import CELL_BITS
from atlasvi.kernels.decoder_loss import Head, SparseCounts, check_options, check_rows
from atlasvi.kernels.plain_counts import InvalidParametersError
from atlasvi.kernels.products import without_tf32
from atlasvi.kernels.reference import Likelihood


@torch.no_grad()
def sample_counts(
    hidden: Tensor,
    head: Head,
    library: Tensor,
    log_theta: Tensor | Head | None = None,
    *,
    cells: Tensor,
    seed: int,
    draw: int = 0,
    theta_rows: Tensor | None = None,
    dropout: Head | None = None,
    likelihood: Likelihood = "nb",
    softmax: bool = True,
    backend: str | None = None,
) -> SparseCounts:
    """One count for each cell and gene: indptr int64, indices and counts int32, genes ascending, zeros left out.

    cells  int64 [cells], the counter of each cell (its index among all cells, say), from 0 to 2**48 - 1
    seed   0 to 2**64 - 1
    draw   number of the draw, 0 to 2**32 - 1
    The other arguments are as for `decoder_nll`. The random numbers of a count depend on seed, draw, the cell's counter
    and the gene alone, so the same seed gives the same counts whatever the tiles, minibatches, threads, ranks and
    backend; but where a product of another shape rounds the last digit of a mean otherwise, a count may change.
    A Poisson rate above 1e8 counts as 1e8, as in scvi-tools. A mean of 0 gives 0.
    Raises InvalidParametersError (a ValueError) where a parameter is NaN or infinite or a library size is negative, and
    ValueError if the options do not fit each other.
    """
    check_options(likelihood, log_theta, theta_rows, dropout)
    check_rows(log_theta, theta_rows)
    if not (0 <= seed < 2**64 and 0 <= draw < 2**32):
        raise ValueError(f"seed {seed} and draw {draw} must be whole numbers from 0 to 2**64 - 1 and to 2**32 - 1")
    if len(cells) and not (int(cells.min()) >= 0 and int(cells.max()) < 2**CELL_BITS):
        raise ValueError(f"the counters of cells must be from 0 to 2**{CELL_BITS} - 1")
    name = choose_backend(hidden.device, backend, hidden.dtype)
    theta_head = log_theta if isinstance(log_theta, Head) else None
    table = log_theta if isinstance(log_theta, Tensor) else None
    heads = [head, theta_head, dropout]
    if name == "torch":
        return _plain(hidden, heads, library, table, theta_rows, softmax, seed, cells, draw)
    n_cells, n_genes = len(hidden), len(head.bias)
    rows = None if theta_rows is None else theta_rows.contiguous()
    has_heads = theta_head is not None, dropout is not None
    sampler = load_sampler(name)(
        n_genes, library.contiguous(), table, rows, has_heads, softmax, seed, cells.contiguous(), draw
    )
    present = [k for k in range(3) if heads[k] is not None]
    n_rows = max(min(sampler.tile_cells(n_genes, len(present)), n_cells), 1)
    tiles = {k: sampler.allocate(k, n_rows, n_genes, hidden, torch.float32) for k in present}
    with without_tf32() if hidden.is_cuda else nullcontext():
        for first in range(0, n_cells, n_rows):
            last = min(first + n_rows, n_cells)
            logits: list[Tensor | None] = [None] * 3
            for k, part in enumerate(heads):
                if part is not None:
                    logits[k] = sampler.project(k, hidden[first:last], part.weight, part.bias, tiles[k][: last - first])
            sampler.take(first, last, logits)
    return SparseCounts(*sampler.finish())


def _plain(
    hidden: Tensor,
    heads: list[Head | None],
    library: Tensor,
    table: Tensor | None,
    theta_rows: Tensor | None,
    softmax: bool,
    seed: int,
    cells: Tensor,
    draw: int,
) -> SparseCounts:
    """The same over dense matrices: the reference, for any dtype and device."""
    logits, log_theta, dropouts = (
        None if part is None else torch.addmm(part.bias, hidden, part.weight.T) for part in heads
    )
    assert logits is not None
    mean = (torch.softmax(logits, dim=1) if softmax else F.softplus(logits)) * library[:, None]
    if table is not None:
        log_theta = table if theta_rows is None else table[theta_rows]
    invalid = (~mean.isfinite()).any(1) | (library < 0)
    for each in (log_theta, dropouts):
        if each is not None:
            invalid |= each.isnan().reshape(-1, mean.shape[1]).any(1)
    if bool(invalid.any()):
        raise InvalidParametersError(int(invalid.nonzero()[0, 0]))
    return SparseCounts(*plain_counts.to_csr(plain_counts.draw_counts(mean, log_theta, dropouts, seed, cells, draw)))
