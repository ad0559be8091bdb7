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
    backend: str | None = None,
) -> Tensor:
    """Negative log-likelihood of each cell, summed over genes, nats: float32 [cells].

    logits     float32 [cells, genes]
    log_theta  [genes]; [rows, genes] with theta_rows int64 [cells]; or, without theta_rows, [cells, genes]
    dropout    logits of dropouts float32 [cells, genes], for ZINB
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
    options = Options(name, likelihood, softmax, 1.0, cells, library, theta_rows)
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
        slopes = [None if tensor is None else tensor.detach().clone() for tensor in (logits, log_theta, dropout)]
        loss, table_grad = torch.empty_like(options.library), None if table is None else torch.zeros_like(table)
        load_sweep(options.backend)(
            options, 0, len(loss), slopes, table, torch.ones_like(options.library), loss, table_grad
        )
        ctx.options, ctx.slopes, ctx.table_grad = options, slopes, table_grad
        ctx.save_for_backward(logits, table, log_theta, dropout)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        logits, table, log_theta, dropout = ctx.saved_tensors
        table_grad = ctx.table_grad
        if table is not None and not bool((grad == grad[0]).all()):  # summed over cells of unequal weight: anew
            table_grad, loss = torch.zeros_like(table), torch.empty_like(grad)
            again = [None if tensor is None else tensor.clone() for tensor in (logits, log_theta, dropout)]
            load_sweep(ctx.options.backend)(
                ctx.options, 0, len(grad), again, table, grad.contiguous(), loss, table_grad
            )
        elif table is not None:
            table_grad = table_grad * grad[0]
        slopes = [None if tensor is None else tensor * grad[:, None] for tensor in ctx.slopes]
        return None, slopes[0], table_grad, slopes[1], slopes[2]
