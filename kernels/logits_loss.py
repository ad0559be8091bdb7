"""From logits of genes to each cell's negative log-likelihood, value and slopes in one sweep over them."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from atlasvi.kernels import reference
from atlasvi.kernels.backends import choose_backend, load_sweep
from atlasvi.kernels.decoder_loss import Options, SparseCounts, check_options
from atlasvi.kernels.reference import Likelihood


def logits_nll(
    logits: Tensor,
    cells: SparseCounts,
    library: Tensor,
    log_theta: Tensor | None = None,
    *,
    theta_rows: Tensor | None = None,
    dropout: Tensor | None = None,
    likelihood: Likelihood = "nb",
    softmax: bool = True,
    expected_grad: float = 1.0,
    backend: str | None = None,
) -> Tensor:
    """Negative log-likelihood of each cell, summed over genes, nats: float32 [cells].

    logits     float32 [cells, genes]
    log_theta  [genes]; [rows, genes] with theta_rows int64 [cells]; or, without theta_rows, [cells, genes]
    dropout    logits of dropouts float32 [cells, genes], for ZINB
    expected_grad  upstream gradient of each cell for which the gradients are computed; another costs a second sweep
    All else as in `decoder_nll`, which holds no logits longer than a tile and is to be preferred.
    Differentiable in logits, log_theta and dropout. Raises ValueError if the options do not fit each other.
    """
    per_cell = theta_rows is None and log_theta is not None and log_theta.dim() == 2
    check_options(likelihood, log_theta, theta_rows, dropout)
    name = choose_backend(logits.device, backend)
    if name == "torch":
        counts = reference.to_dense(cells.indptr, cells.indices, cells.counts, logits.shape[1], logits.dtype)
        theta = log_theta[theta_rows] if theta_rows is not None and log_theta is not None else log_theta
        return reference.nll_from_logits(counts, logits, library, theta, dropout, likelihood, softmax)
    options = Options(name, likelihood, softmax, expected_grad, cells, library, theta_rows)
    return _LogitsNLL.apply(options, logits, None if per_cell else log_theta, log_theta if per_cell else None, dropout)


class _LogitsNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        options: Options,
        logits: Tensor,
        table: Tensor | None,
        log_theta: Tensor | None,
        dropout: Tensor | None,
    ) -> Tensor:
        ctx.options = options
        ctx.save_for_backward(logits, table, log_theta, dropout)
        loss, ctx.gradients = _sweep(
            options, logits, table, log_theta, dropout, torch.full_like(options.library, options.expected_grad)
        )
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        gradients, ctx.gradients = ctx.gradients, None  # handed on once: they may be the caller's from then on
        if gradients is None or not bool((grad == ctx.options.expected_grad).all()):
            gradients = _sweep(ctx.options, *ctx.saved_tensors, grad.contiguous())[1]
        return None, *gradients


def _sweep(
    options: Options,
    logits: Tensor,
    table: Tensor | None,
    log_theta: Tensor | None,
    dropout: Tensor | None,
    weights: Tensor,
) -> tuple[Tensor, list[Tensor | None]]:
    """Losses of all cells, and the gradients of (logits, table, log_theta, dropout)."""
    loss, slopes = torch.empty_like(weights), torch.empty_like(logits)
    table_grad = None if table is None else torch.zeros_like(table)
    parts = [logits, *(None if tensor is None else tensor.detach().clone() for tensor in (log_theta, dropout))]
    load_sweep(options.backend)(options, 0, len(loss), parts, table, weights, loss, table_grad, slopes)
    return loss, [slopes, table_grad, parts[1], parts[2]]
