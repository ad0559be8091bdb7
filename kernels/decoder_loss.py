"""From the decoder's hidden state to each cell's negative log-likelihood, with all gradients in one sweep.

Output layer, softmax (or softplus) over genes, mean = library * share, likelihood at the zeros in closed form, the
nonzeros by themselves. Cells are taken a tile at a time; nothing of size cells x genes outlives its tile. The gradients
are computed with the value, so the backward pass only hands them on: they are exact for the upstream gradient that was
expected, scaled for another that is the same for all cells, and computed anew for any else.
"""

import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from atlasvi.kernels import reference
from atlasvi.kernels.backends import choose_backend, load_sweep
from atlasvi.kernels.reference import Likelihood

TILE_BYTES = 16 * 2**20  # of logits: wide enough for the matrix products, small beside the weights of a large model


@dataclass(frozen=True)
class SparseCounts:
    """Counts of cells x genes in CSR: indptr int32 or int64 [cells + 1], indices and counts of any integer type."""

    indptr: Tensor
    indices: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Head:
    """An output layer: weight [genes, hidden], bias [genes]."""

    weight: Tensor
    bias: Tensor


def decoder_nll(
    hidden: Tensor,
    head: Head,
    cells: SparseCounts,
    library: Tensor,
    log_theta: Tensor | Head | None = None,
    *,
    theta_rows: Tensor | None = None,
    dropout: Head | None = None,
    likelihood: Likelihood = "nb",
    softmax: bool = True,
    expected_grad: float = 1.0,
    backend: str | None = None,
) -> Tensor:
    """Negative log-likelihood of each cell, summed over genes, nats: float32 [cells].

    hidden      float32 [cells, hidden]
    head        logits of genes
    library     float32 [cells], counts a cell; zero is allowed (an empty cell has loss 0)
    log_theta   log of the inverse dispersion: [genes]; [rows, genes] with theta_rows int64 [cells] saying which row is
                a cell's (its batch, its label); or a Head, which gives one for each cell and gene. None for Poisson
    dropout     head of the logits of dropouts, for ZINB
    softmax     mean = library * softmax(logits); False: library * softplus(logits), where library is a size factor
    expected_grad  upstream gradient of each cell for which the gradients are computed (1 / cells under a mean)
    backend     'cpu' or 'torch'; None chooses by device (see `choose_backend`)
    Differentiable in hidden, both weights and biases of all heads, and log_theta.
    Raises ValueError if the options do not fit each other.
    """
    check_options(likelihood, log_theta, theta_rows, dropout)
    name = choose_backend(hidden.device, backend)
    if name == "torch":
        return _plain(hidden, head, cells, library, log_theta, theta_rows, dropout, likelihood, softmax)
    theta_head = log_theta if isinstance(log_theta, Head) else None
    table = None if isinstance(log_theta, Head) or log_theta is None else log_theta
    options = Options(name, likelihood, softmax, expected_grad, cells, library, theta_rows)
    heads = [part for h in (head, theta_head, dropout) for part in ((h.weight, h.bias) if h else (None, None))]
    return _DecoderNLL.apply(options, hidden, table, *heads)


def check_options(
    likelihood: str, log_theta: Tensor | Head | None, theta_rows: Tensor | None, dropout: Tensor | Head | None
) -> None:
    """Raises ValueError if the options of a likelihood do not fit each other."""
    if likelihood not in ("nb", "zinb", "poisson"):
        raise ValueError(f"likelihood is {likelihood!r}: choose 'nb', 'zinb' or 'poisson'")
    if (log_theta is None) != (likelihood == "poisson"):
        raise ValueError(f"{likelihood} {'has no' if likelihood == 'poisson' else 'needs a'} dispersion (log_theta)")
    if (dropout is None) == (likelihood == "zinb"):
        raise ValueError(f"{likelihood} {'needs a' if likelihood == 'zinb' else 'has no'} head of dropouts")
    if theta_rows is not None and (isinstance(log_theta, Head) or log_theta is None or log_theta.dim() != 2):
        raise ValueError("theta_rows chooses rows of a log_theta [rows, genes]")


def _plain(
    hidden: Tensor,
    head: Head,
    cells: SparseCounts,
    library: Tensor,
    log_theta: Tensor | Head | None,
    theta_rows: Tensor | None,
    dropout: Head | None,
    likelihood: Likelihood,
    softmax: bool,
) -> Tensor:
    """The same by autograd over dense matrices: the reference, in any dtype, on any device."""
    counts = reference.to_dense(cells.indptr, cells.indices, cells.counts, len(head.bias), hidden.dtype)
    if isinstance(log_theta, Head):
        log_theta = torch.addmm(log_theta.bias, hidden, log_theta.weight.T)
    elif theta_rows is not None and log_theta is not None:
        log_theta = log_theta[theta_rows]
    logits = torch.addmm(head.bias, hidden, head.weight.T)
    pi = None if dropout is None else torch.addmm(dropout.bias, hidden, dropout.weight.T)
    return reference.nll_from_logits(counts, logits, library, log_theta, pi, likelihood, softmax)


@dataclass(frozen=True)
class Options:
    """What a sweep is told besides its tensors."""

    backend: str
    likelihood: Likelihood
    softmax: bool
    expected_grad: float
    cells: SparseCounts
    library: Tensor
    theta_rows: Tensor | None


class _DecoderNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, options: Options, hidden: Tensor, table: Tensor | None, *heads: Tensor | None) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        weights = torch.full_like(options.library, options.expected_grad) if wanted else None
        loss, gradients = _sweep(options, hidden, table, heads, weights)
        ctx.options, ctx.present = options, [tensor is not None for tensor in gradients]
        ctx.save_for_backward(hidden, table, *heads, *gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        n_inputs = 2 + 6
        inputs, gradients = ctx.saved_tensors[:n_inputs], ctx.saved_tensors[n_inputs:]
        scale = grad / ctx.options.expected_grad
        if bool((grad == ctx.options.expected_grad).all()):
            return None, *gradients
        if bool((grad == grad[0]).all()):
            return None, *(None if tensor is None else tensor * scale[0] for tensor in gradients)
        hidden, table, *heads = inputs
        return None, *_sweep(ctx.options, hidden, table, heads, grad.contiguous())[1]


def _sweep(
    options: Options, hidden: Tensor, table: Tensor | None, heads: Any, weights: Tensor | None
) -> tuple[Tensor, list[Tensor | None]]:
    """Losses of all cells and the gradients of (hidden, table, each weight and bias); None of them without weights."""
    sweep = load_sweep(options.backend)
    n_cells, n_genes = len(hidden), len(heads[1])
    loss = torch.empty(n_cells, dtype=torch.float32, device=hidden.device)
    gradients: list[Tensor | None] = [None] * (2 + len(heads))
    if weights is not None:
        gradients[0] = torch.empty_like(hidden)
        gradients[1] = None if table is None else torch.zeros_like(table)
        gradients[2:] = [None if tensor is None else torch.zeros_like(tensor) for tensor in heads]
    rows = max(min(TILE_BYTES // (4 * n_genes), n_cells), 1)
    for first in range(0, n_cells, rows):
        last = min(first + rows, n_cells)
        tile = hidden[first:last]
        logits: list[Tensor | None] = []
        for k in range(0, len(heads), 2):
            if heads[k] is None:
                logits.append(None)
            else:
                out = _borrow(k, (last - first, n_genes), hidden)
                logits.append(torch.addmm(heads[k + 1], tile, heads[k].T, out=out))
        sweep(options, first, last, logits, table, weights, loss, gradients[1])
        if weights is None:
            continue
        for k, slopes in zip(range(0, len(heads), 2), logits):
            if slopes is not None:
                weight_grad, bias_grad = gradients[2 + k], gradients[3 + k]
                assert weight_grad is not None
                assert bias_grad is not None
                torch.addmm(weight_grad, slopes.T, tile, out=weight_grad)
                bias_grad += slopes.sum(0)
                if k == 0:
                    torch.mm(slopes, heads[k], out=gradients[0][first:last])  # type: ignore[index]
                else:
                    gradients[0][first:last].addmm_(slopes, heads[k])  # type: ignore[index]
    return loss, gradients


_TILES = threading.local()


def _borrow(number: int, shape: tuple[int, int], like: Tensor) -> Tensor:
    """A tile of logits, used again by the next call of this thread: fresh memory costs its page faults."""
    kept = _TILES.__dict__.setdefault("kept", {})
    key = number, like.device, like.dtype
    n = shape[0] * shape[1]
    if key not in kept or kept[key].numel() < n:
        with torch.inference_mode(False):  # or a first call in inference mode leaves what no other may write to
            kept[key] = torch.empty(n, dtype=like.dtype, device=like.device)
    return kept[key][:n].view(shape)
