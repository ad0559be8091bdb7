"""The output layer's product and bias, by Triton, and in the same pass each cell's values for the softmax.

A program has a block of cells and a block of genes. float32 factors are split in two tf32 parts, of whose products the
three larger ones are summed on the tensor cores (relative error about 1e-6); bfloat16 factors are multiplied directly.
"""

import triton
import triton.language as tl
from torch import Tensor

from atlasvi.kernels.triton_math import LOG2E
from atlasvi.kernels.triton_sparse import device_of

CELLS, GENES, WARPS = 64, 128, 4  # of a program
HIDDEN_BYTES = 128  # bytes of a cell's hidden units that are multiplied at a time


def count_parts(n_genes: int) -> int:
    """Number of blocks of genes in a row."""
    return triton.cdiv(n_genes, GENES)


def project(
    hidden: Tensor, weight: Tensor, bias: Tensor, out: Tensor, maxima: Tensor | None = None, sums: Tensor | None = None
) -> Tensor:
    """hidden @ weight.T + bias into `out` float32 [cells, genes]; padding of rows, if any, becomes minus infinity.

    hidden, weight  both float32 or both bfloat16
    maxima, sums    float32 [cells, count_parts(genes)], written: for each block of genes the largest logit, and the
                    sum of exp(logit - largest); None: not needed
    """
    (n_cells, n_hidden), n_genes = hidden.shape, len(weight)
    with device_of(hidden):
        _project_kernel[(triton.cdiv(n_cells, CELLS), count_parts(n_genes))](
            hidden.contiguous(), weight.contiguous(), bias.contiguous(), out, out if maxima is None else maxima,
            out if sums is None else sums, n_cells, n_genes, n_hidden, out.stride(0), count_parts(n_genes),
            maxima is not None, IS_INTERPRETED, CELLS, GENES, HIDDEN_BYTES // hidden.element_size(), num_warps=WARPS,
        )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["n_cells"])
def _project_kernel(
    hidden,
    weight,
    bias,
    out,
    maxima,
    sums,
    n_cells,
    n_genes,
    n_hidden,
    width,
    n_parts,
    SOFTMAX: tl.constexpr,
    WIDEN: tl.constexpr,
    CELLS: tl.constexpr,
    GENES: tl.constexpr,
    HIDDEN: tl.constexpr,
):
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    g = tl.program_id(1) * GENES + tl.arange(0, GENES)
    h = tl.arange(0, HIDDEN)
    row = cell.to(tl.int64)[:, None]
    products = tl.zeros([CELLS, GENES], tl.float32)
    for start in range(0, n_hidden, HIDDEN):
        in_hidden = start + h < n_hidden
        in_a = (cell < n_cells)[:, None] & in_hidden[None, :]
        in_b = (g < n_genes)[None, :] & in_hidden[:, None]
        a = tl.load(hidden + row * n_hidden + start + h[None, :], mask=in_a, other=0.0)
        b = tl.load(weight + g[None, :] * n_hidden + start + h[:, None], mask=in_b, other=0.0)
        if WIDEN:
            a, b = a.to(tl.float32), b.to(tl.float32)
        products = tl.dot(a, b, products, input_precision="tf32x3")
    products += tl.load(bias + g, mask=g < n_genes, other=0.0)[None, :]
    logits = tl.where((g < n_genes)[None, :], products, float("-inf"))
    tl.store(out + row * width + g[None, :], logits, mask=(cell < n_cells)[:, None] & (g < width)[None, :])
    if SOFTMAX:
        highest = tl.max(logits, 1)
        place = cell.to(tl.int64) * n_parts + tl.program_id(1)
        tl.store(maxima + place, highest, mask=cell < n_cells)
        some = tl.sum(tl.exp2((logits - highest[:, None]) * LOG2E), 1)
        tl.store(sums + place, some, mask=cell < n_cells)


IS_INTERPRETED = not isinstance(_project_kernel, triton.JITFunction)
"""If so, products are computed in float32: the interpreter would multiply the bits of bfloat16 as integers."""
