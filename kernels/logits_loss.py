"""From logits of genes to each cell's negative log-likelihood, value and slopes in one sweep over the logits."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from atlasvi.kernels import reference
from atlasvi.kernels.backends import choose_backend, load_sweep
from atlasvi.kernels.decoder_loss import Options, SparseCounts, check_options, set_nan_unless_expected
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
    expected_grad: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Negative log-likelihood of each cell, summed over genes, nats: float32 [cells].

    logits     float32 [cells, genes]
    log_theta  [genes]; [rows, genes] with theta_rows int64 [cells]; or, without theta_rows, [cells, genes]
    dropout    logits of dropouts float32 [cells, genes], for ZINB
    expected_grad  upstream gradient of each cell for which the gradients are computed with the loss. 'cpu': if it
               differs (from 1, if None), a second sweep is needed. 'triton': None computes them in the backward pass;
               if the upstream gradient differs from a given number, all gradients contain NaN
    All else as in `decoder_nll`, which should be preferred, since it keeps no logits longer than a tile.
    Differentiable in logits, log_theta and dropout. Raises ValueError if the options do not fit each other.
    """
    per_cell = theta_rows is None and log_theta is not None and log_theta.dim() == 2
    check_options(likelihood, log_theta, theta_rows, dropout)
    name = choose_backend(logits.device, backend, logits.dtype)
    if name == "torch":
        counts = reference.to_dense(cells.indptr, cells.indices, cells.counts, logits.shape[1], logits.dtype)
        theta = log_theta[theta_rows] if theta_rows is not None and log_theta is not None else log_theta
        return reference.nll_from_logits(counts, logits, library, theta, dropout, likelihood, softmax)
    options = Options.lay_out(name, likelihood, softmax, expected_grad, cells, library, theta_rows)
    inputs = (logits, None if per_cell else log_theta, log_theta if per_cell else None, dropout)
    if not torch.is_grad_enabled():  # in evaluation: autograd would ask for the gradients of parameters all the same
        return _sweep(options, inputs, None)[0]
    return _LogitsNLL.apply(options, *inputs)


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
        expected = options.expected_grad
        if expected is None and options.backend == "cpu":
            expected = 1.0
        weights = None
        if expected is not None and any(ctx.needs_input_grad):
            weights = torch.full_like(options.library, expected)
        ctx.options, ctx.expected = options, expected
        ctx.save_for_backward(logits, table, log_theta, dropout)
        loss, gradients = _sweep(options, (logits, table, log_theta, dropout), weights)
        ctx.gradients = None if weights is None else gradients
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        gradients, ctx.gradients = ctx.gradients, None  # used once: the caller may change them in place
        if gradients is not None and ctx.options.backend != "cpu":  # without waiting for the device
            set_nan_unless_expected(grad, ctx.expected, gradients)
        elif gradients is None or not bool((grad == ctx.expected).all()):
            gradients = _sweep(ctx.options, ctx.saved_tensors, grad.contiguous())[1]
        return None, *gradients


def _sweep(options: Options, inputs: Any, weights: Tensor | None) -> tuple[Tensor, list[Tensor | None]]:
    """Losses of all cells, and gradients of (logits, table, log_theta, dropout), all None without weights."""
    logits, table, log_theta, dropout = inputs
    (n_cells, n_genes), dense = logits.shape, torch.contiguous_format
    given = [None if tensor is None else tensor.detach().contiguous() for tensor in (logits, log_theta, dropout)]
    loss = torch.empty_like(options.library)
    wanted = weights is not None
    table_grad = torch.zeros_like(table, memory_format=dense) if table is not None and wanted else None
    slopes = [
        torch.empty_like(tensor, memory_format=dense) if tensor is not None and wanted else None for tensor in given
    ]
    sweep = load_sweep(options.backend)(options, n_genes, table, weights, loss, table_grad)
    n_rows = max(min(sweep.tile_cells(n_genes, 0), n_cells), 1)
    scratch = None if wanted else sweep.allocate(0, n_rows, n_genes, logits, torch.float32)
    for first in range(0, n_cells, n_rows):
        last = min(first + n_rows, n_cells)
        some, *others = [None if tensor is None else tensor[first:last] for tensor in slopes]
        target = some if scratch is None else scratch[: last - first]
        sweep.take(
            first, last, [None if t is None else t[first:last] for t in given], keep=True, slopes=[target, *others]
        )
    sweep.finish()
    return loss, [slopes[0], table_grad, slopes[1], slopes[2]]
