"""How the likelihood of a cell's counts changes with its library size: what a latent library needs beside the kernels.

They give the gradients by the decoder's hidden state and weights; through the softmax, none of those says how the loss
changes when all means of a cell grow together. That slope is the sum over genes of d nll / d log(mean):

    NB       theta (mean - x) / (theta + mean)
    ZINB     x > 0: as NB; x = 0: mean theta / (theta + mean), times the probability that the zero was drawn
    Poisson  mean - x
"""

import torch
from torch import Tensor

from atlasvi.kernels import Head, SparseCounts

TILE_BYTES = 16 * 2**20  # of logits: as the fused kernels hold them


@torch.no_grad()
def slope_by_log_library(
    hidden: Tensor,
    head: Head,
    cells: SparseCounts,
    library: Tensor,
    log_theta: Tensor | Head | None,
    theta_rows: Tensor | None,
    dropout: Head | None,
) -> Tensor:
    """d nll / d log(library) of each cell, float32 [cells]; the arguments of `decoder_nll`, with softmax."""
    if log_theta is None:
        rows = _rows(cells.indptr)
        return library - torch.zeros_like(library).index_add_(0, rows, cells.counts[: len(rows)].to(library.dtype))
    slopes, n_rows = torch.empty_like(library), max(TILE_BYTES // (4 * len(head.bias)), 1)
    for first in range(0, len(hidden), n_rows):
        tile = slice(first, first + n_rows)
        mean = torch.softmax(_project(hidden[tile], head), dim=1) * library[tile, None]
        if isinstance(log_theta, Head):
            theta = _project(hidden[tile], log_theta).exp()
        else:
            theta = (log_theta if theta_rows is None else log_theta[theta_rows[tile]]).exp().expand_as(mean)
        of_zeros = mean * theta / (theta + mean)
        if dropout is not None:
            of_zeros *= torch.sigmoid(-_project(hidden[tile], dropout) - theta * torch.log1p(mean / theta))
        indptr = cells.indptr[first : first + len(mean) + 1]
        begin, end = int(indptr[0]), int(indptr[-1])
        rows, genes, counts = _rows(indptr), cells.indices[begin:end].long(), cells.counts[begin:end]
        theta, mean = theta[rows, genes], mean[rows, genes]
        of_nonzeros = theta * (mean - counts.to(mean.dtype)) / (theta + mean)
        slopes[tile] = of_zeros.sum(1).index_add_(0, rows, of_nonzeros - of_zeros[rows, genes])
    return slopes


def _project(hidden: Tensor, head: Head) -> Tensor:
    return torch.addmm(head.bias, hidden, head.weight.T)


def _rows(indptr: Tensor) -> Tensor:
    """The cell of each stored count."""
    lengths = indptr.diff().long()
    return torch.repeat_interleave(torch.arange(len(lengths), device=indptr.device), lengths)
