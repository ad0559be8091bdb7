"""From the decoder's hidden state to each cell's negative log-likelihood, with all gradients in one sweep.

Output layer, softmax (or softplus) over genes, mean = library * proportion, likelihood of the zeros in closed form,
nonzeros separately. Cells are taken a tile at a time; nothing of size cells x genes is kept longer than its tile. The
gradients are computed with the value, for an expected upstream gradient. If the upstream gradient differs, they are
scaled (if it is the same for all cells) or recomputed. On a GPU, where a comparison would wait for the device, they are
computed with the value only if the caller gives `expected_grad`, and become NaN if the upstream gradient differs.
"""

import math
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from atlasvi.kernels import reference
from atlasvi.kernels.backends import choose_backend, load_sweep
from atlasvi.kernels.products import Precision, multiply_into, without_tf32
from atlasvi.kernels.reference import Likelihood


@dataclass(frozen=True)
class SparseCounts:
    """Counts of cells x genes in CSR: indptr int32 or int64 [cells + 1], indices and counts of any integer type.

    indices and counts may be longer than indptr[-1]; the rest is ignored (buffers of a fixed size, for CUDA graphs).
    """

    indptr: Tensor
    indices: Tensor
    counts: Tensor

    def contiguous(self) -> "SparseCounts":
        """The same in contiguous memory, as the kernels require."""
        return SparseCounts(self.indptr.contiguous(), self.indices.contiguous(), self.counts.contiguous())


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
    expected_grad: float | None = None,
    precision: Precision = "float32",
    backend: str | None = None,
) -> Tensor:
    """Negative log-likelihood of each cell, summed over genes, nats: float32 [cells].

    hidden      float32 [cells, hidden]; float64 (then for all tensors) runs on 'torch'
    head        output layer that gives the logits of genes
    library     float32 [cells], counts per cell; zero is allowed (an empty cell has loss 0) where no gradient is wanted
    log_theta   log of the inverse dispersion: [genes]; [rows, genes] with theta_rows int64 [cells], the row of each
                cell (its batch or label); or a Head, which gives one for each cell and gene. None for Poisson
    dropout     head of the logits of dropouts, for ZINB
    softmax     mean = library * softmax(logits); False: library * softplus(logits), where library is a size factor
    expected_grad  upstream gradient of each cell for which the gradients are computed with the loss (1 / cells under a
                mean). None: for 1 ('cpu'), or in the backward pass ('triton'). If the upstream gradient differs, 'cpu'
                recomputes the gradients, and with 'triton' all gradients contain NaN
    precision   of the products with weights: 'float32', or 'bf16' ('triton' only): factors in bfloat16, sums in
                float32. The likelihood is float32 in either case
    backend     'cpu', 'triton' or 'torch'; None chooses by device (see `choose_backend`)
    Differentiable in hidden, library, both weights and biases of all heads, and log_theta.
    Raises ValueError if the options do not fit each other.
    """
    check_options(likelihood, log_theta, theta_rows, dropout)
    check_rows(log_theta, theta_rows)
    name = choose_backend(hidden.device, backend, hidden.dtype)
    if precision != "float32" and not (precision == "bf16" and name == "triton"):
        raise ValueError(f"precision is {precision!r} on {name!r}: choose 'float32', or 'bf16' on 'triton'")
    if name == "torch":
        return _plain(hidden, head, cells, library, log_theta, theta_rows, dropout, likelihood, softmax)
    theta_head = log_theta if isinstance(log_theta, Head) else None
    table = None if isinstance(log_theta, Head) or log_theta is None else log_theta
    options = Options.lay_out(name, likelihood, softmax, expected_grad, cells, library, theta_rows, precision)
    heads = [part for h in (head, theta_head, dropout) for part in ((h.weight, h.bias) if h else (None, None))]
    if not torch.is_grad_enabled():  # in evaluation: autograd would ask for the gradients of parameters all the same
        return _sweep(options, hidden, table, heads, None, False)[0]
    return _DecoderNLL.apply(options, hidden, table, library, *heads)


def check_options(
    likelihood: str, log_theta: Tensor | Head | None, theta_rows: Tensor | None, dropout: Tensor | Head | None
) -> None:
    """Raise ValueError if the options of a likelihood do not fit each other."""
    if likelihood not in ("nb", "zinb", "poisson"):
        raise ValueError(f"likelihood is {likelihood!r}: choose 'nb', 'zinb' or 'poisson'")
    if (log_theta is None) != (likelihood == "poisson"):
        raise ValueError(f"{likelihood} {'has no' if likelihood == 'poisson' else 'needs a'} dispersion (log_theta)")
    if (dropout is None) == (likelihood == "zinb"):
        raise ValueError(f"{likelihood} {'needs a' if likelihood == 'zinb' else 'has no'} head of dropouts")
    if theta_rows is not None and (isinstance(log_theta, Head) or log_theta is None or log_theta.dim() != 2):
        raise ValueError("theta_rows chooses rows of a log_theta [rows, genes]")


def check_rows(log_theta: Tensor | Head | None, theta_rows: Tensor | None) -> None:
    """Raise ValueError if log_theta has several rows, and nothing says which of them is a cell's."""
    if isinstance(log_theta, Tensor) and log_theta.dim() == 2 and len(log_theta) > 1 and theta_rows is None:
        raise ValueError(f"log_theta has {len(log_theta)} rows: theta_rows must give the row of each cell")


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
    """The same by autograd over dense matrices: the reference, for any dtype and device."""
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
    """Everything that a sweep needs besides the tensors that it differentiates."""

    backend: str
    likelihood: Likelihood
    softmax: bool
    expected_grad: float | None
    cells: SparseCounts
    library: Tensor
    theta_rows: Tensor | None
    precision: Precision = "float32"

    @classmethod
    def lay_out(
        cls,
        backend: str,
        likelihood: Likelihood,
        softmax: bool,
        expected_grad: float | None,
        cells: SparseCounts,
        library: Tensor,
        theta_rows: Tensor | None,
        precision: Precision = "float32",
    ) -> "Options":
        """Options with contiguous tensors, as the kernels require."""
        rows = None if theta_rows is None else theta_rows.contiguous()
        library = library.detach().contiguous()
        return cls(backend, likelihood, softmax, expected_grad, cells.contiguous(), library, rows, precision)


class _DecoderNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, options: Options, hidden: Tensor, table: Tensor | None, library: Tensor, *heads: Tensor | None
    ) -> Tensor:
        expected = options.expected_grad
        if expected is None and options.backend == "cpu":
            expected = 1.0
        weights = None
        if expected is not None and any(ctx.needs_input_grad):
            weights = torch.full_like(options.library, expected)
        ctx.options, ctx.expected, ctx.by_library = options, expected, ctx.needs_input_grad[3]
        loss, gradients = _sweep(options, hidden, table, heads, weights, ctx.by_library)
        ctx.save_for_backward(hidden, table, *heads, *gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        n_inputs = 2 + 6
        (hidden, table, *heads), gradients = ctx.saved_tensors[:n_inputs], ctx.saved_tensors[n_inputs:]
        if ctx.expected is not None and ctx.options.backend != "cpu":  # without waiting for the device
            set_nan_unless_expected(grad, ctx.expected, gradients)
            return None, *gradients
        if ctx.expected is not None and bool((grad == ctx.expected).all()):
            return None, *gradients
        if ctx.expected is not None and bool((grad == grad[0]).all()):
            scale = grad[0] / ctx.expected
            return None, *(None if tensor is None else tensor * scale for tensor in gradients)
        return None, *_sweep(ctx.options, hidden, table, heads, grad.contiguous(), ctx.by_library)[1]


def set_nan_unless_expected(grad: Tensor, expected: float, gradients: Iterable[Tensor | None]) -> None:
    """Make the first value of each gradient NaN unless the upstream gradient is the expected one, up to rounding.

    It does not wait for the device.
    """
    difference = torch.linalg.vector_norm(grad - expected)
    kept = difference <= 1e-6 * abs(expected) * math.sqrt(len(grad))
    first = [tensor.view(-1)[:1] for tensor in gradients if tensor is not None]
    torch._foreach_add_(first, [torch.where(kept, 0.0, torch.nan).view(1)] * len(first))


def _sweep(
    options: Options, hidden: Tensor, table: Tensor | None, heads: Any, weights: Tensor | None, by_library: bool
) -> tuple[Tensor, list[Tensor | None]]:
    """Losses of all cells, and the gradients of (hidden, table, library, each weight and bias), or None for each.

    Gradients are None without weights, and that of the library unless by_library.
    """
    n_cells, n_genes = len(hidden), len(heads[1])
    loss = torch.empty(n_cells, dtype=torch.float32, device=hidden.device)
    gradients: list[Tensor | None] = [None] * (3 + len(heads))
    if weights is not None:
        gradients = [
            None if tensor is None else torch.empty_like(tensor, memory_format=torch.contiguous_format)
            for tensor in (hidden, table, options.library if by_library else None, *heads)
        ]
        # the first product overwrites the gradients of hidden and weights; without cells there is no product
        added_to = gradients if n_cells == 0 else [gradients[1], *gradients[4::2]]
        torch._foreach_zero_([tensor for tensor in added_to if tensor is not None])
    sweep = load_sweep(options.backend)(
        options, n_genes, table, weights, loss, gradients[1], gradients[2], gradients[4::2]
    )
    present = [k for k in range(0, len(heads), 2) if heads[k] is not None]
    n_rows = max(min(sweep.tile_cells(n_genes, len(present)), n_cells), 1)
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    factors, bases = hidden.to(dtype), {k: heads[k].to(dtype) for k in present}
    tiles = {k: sweep.allocate(k, n_rows, n_genes, hidden, torch.float32) for k in present}
    slopes = (
        tiles if dtype == torch.float32 else {k: sweep.allocate(k, n_rows, n_genes, hidden, dtype) for k in present}
    )
    with without_tf32() if hidden.is_cuda else nullcontext():
        for first in range(0, n_cells, n_rows):
            last = min(first + n_rows, n_cells)
            some, n = factors[first:last], last - first
            logits = {k: sweep.project(k, some, bases[k], heads[k + 1], tiles[k][:n]) for k in present}
            targets = None if slopes is tiles else [slopes[k][:n] if k in slopes else None for k in (0, 2, 4)]
            sweep.take(first, last, [logits.get(k) for k in (0, 2, 4)], slopes=targets)
            for k in present if weights is not None else ():
                hidden_grad, weight_grad = gradients[0], gradients[3 + k]
                assert hidden_grad is not None
                assert weight_grad is not None
                multiply_into(weight_grad, slopes[k][:n].T, some, add=first > 0)
                multiply_into(hidden_grad[first:last], slopes[k][:n], bases[k], add=k > 0)
    sweep.finish()
    return loss, gradients
