"""The zeros of a tile of logits, and the gradients of the whole tile, by Triton; see triton_likelihood.py.

A program has a block of genes and CELLS cells, one after the other. It reads the values of a gene once for all of these
cells, and adds sums over cells to `parts` [groups, genes].
"""

import triton
import triton.language as tl

from atlasvi.kernels.triton_likelihood import mean_of, read_marks, theta_row
from atlasvi.kernels.triton_math import LOG2E, softplus_slope, zero_terms


@triton.jit
def _put(parts, sums, known, ADD: tl.constexpr):
    """Write sums, or add them to those of earlier tiles."""
    if ADD:
        sums += tl.load(parts, mask=known, other=0.0)
    tl.store(parts, sums, mask=known)


@triton.jit(do_not_specialize=["n_cells"])
def zeros_kernel(
    marked,
    theta,
    theta_rows,
    dropout,
    library,
    weights,
    offsets,
    scales,
    indptr,
    by_theta,
    loss_parts,
    slope_parts,
    theta_parts,
    n_cells,
    n_genes,
    width,
    theta_stride,
    dropout_stride,
    n_blocks,
    LIKELIHOOD: tl.constexpr,
    SOFTMAX: tl.constexpr,
    THETA: tl.constexpr,
    GRADIENTS: tl.constexpr,
    ADD: tl.constexpr,
    CELLS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Sums over the zeros: write loss_parts and slope_parts [cells, n_blocks], and theta_parts [groups, genes].

    With one theta a gene, its gradients are summed over cells here, those of the nonzeros too.
    """
    block, group = tl.program_id(0), tl.program_id(1)
    g = block * BLOCK + tl.arange(0, BLOCK)
    known = g < n_genes
    theta_here = tl.full([BLOCK], 1.0, tl.float32)
    inverse = theta_here
    if THETA == "gene":
        log_theta = tl.load(theta + g, mask=known, other=0.0) * LOG2E
        theta_here, inverse = tl.exp2(log_theta), tl.exp2(-log_theta)
    theta_sums = tl.zeros([BLOCK], tl.float32)
    for cell in tl.range(group * CELLS, tl.minimum(group * CELLS + CELLS, n_cells), num_stages=STAGES):
        cell_library, offset, factor = tl.load(library + cell), 0.0, 0.0
        if SOFTMAX:
            offset, factor = tl.load(offsets + cell), cell_library * tl.load(scales + cell)
        place = tl.full([], cell, tl.int64)
        tile = tl.load(marked + place * width + g, mask=g < width, other=float("-inf"))
        begin, end = tl.load(indptr + cell), tl.load(indptr + cell + 1)
        is_mark, number, logits = read_marks(tile, end - begin)
        mean, _ = mean_of(logits, offset, factor, cell_library, SOFTMAX)
        if THETA == "rows" or THETA == "cells":
            log_theta = tl.load(theta_row(theta, theta_rows, theta_stride, place, THETA) + g, mask=known, other=0.0)
            theta_here, inverse = tl.exp2(log_theta * LOG2E), tl.exp2(-log_theta * LOG2E)
        pi = mean
        if LIKELIHOOD == "zinb":
            pi = tl.load(dropout + place * dropout_stride + g, mask=known, other=0.0)
        loss, slope, slope_by_theta, _ = zero_terms(mean, theta_here, inverse, pi, LIKELIHOOD)
        tl.store(loss_parts + place * n_blocks + block, tl.sum(loss, 0))
        if GRADIENTS:
            tl.store(slope_parts + place * n_blocks + block, tl.sum(slope, 0))
            if THETA == "gene":
                theta_sums += slope_by_theta * tl.load(weights + cell)
                theta_sums += tl.load(by_theta + begin + number, mask=is_mark, other=0.0)
    if GRADIENTS and THETA == "gene":
        _put(theta_parts + group.to(tl.int64) * n_genes + g, theta_sums, known, ADD)


@triton.jit(do_not_specialize=["n_cells"])
def slopes_kernel(
    marked,
    theta,
    theta_rows,
    dropout,
    library,
    weights,
    offsets,
    scales,
    slope_sums,
    slope_parts,
    indptr,
    by_logit,
    proportions,
    by_theta,
    by_dropout,
    slopes,
    theta_slopes,
    dropout_slopes,
    bias_parts,
    theta_bias_parts,
    dropout_bias_parts,
    n_cells,
    n_genes,
    width,
    theta_stride,
    dropout_stride,
    theta_slopes_stride,
    dropout_slopes_stride,
    slopes_stride,
    n_blocks,
    LIKELIHOOD: tl.constexpr,
    SOFTMAX: tl.constexpr,
    THETA: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    CELLS: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write the gradients of the logits, of log theta (unless there is one a gene), and of dropouts.

    Each gradient may overwrite its variable. Through the softmax: slope - proportion * sum of slopes. BIAS: sums of the
    gradients over cells go into the three arrays of parts [groups, genes].
    """
    block, group = tl.program_id(0), tl.program_id(1)
    g = block * BLOCK + tl.arange(0, BLOCK)
    known = g < n_genes
    theta_here = tl.full([BLOCK], 1.0, tl.float32)
    inverse = theta_here
    if THETA == "gene":
        log_theta = tl.load(theta + g, mask=known, other=0.0) * LOG2E
        theta_here, inverse = tl.exp2(log_theta), tl.exp2(-log_theta)
    sums = tl.zeros([BLOCK], tl.float32)
    theta_sums = tl.zeros([BLOCK], tl.float32)
    dropout_sums = tl.zeros([BLOCK], tl.float32)
    for cell in tl.range(group * CELLS, tl.minimum(group * CELLS + CELLS, n_cells), num_stages=STAGES):
        weight, cell_library = tl.load(weights + cell), tl.load(library + cell)
        place = tl.full([], cell, tl.int64)
        offset, factor, ratio = 0.0, 0.0, 0.0
        if SOFTMAX:
            parts = tl.arange(0, PARTS)
            slope_sum = tl.load(slope_sums + cell)
            slope_sum += tl.sum(tl.load(slope_parts + place * n_blocks + parts, mask=parts < n_blocks, other=0.0), 0)
            scale = tl.load(scales + cell)
            offset, factor, ratio = tl.load(offsets + cell), cell_library * scale, slope_sum * scale
        tile = tl.load(marked + place * width + g, mask=g < width, other=float("-inf"))
        begin, end = tl.load(indptr + cell), tl.load(indptr + cell + 1)
        is_mark, number, logits = read_marks(tile, end - begin)
        k = begin + number
        mean, e = mean_of(logits, offset, factor, cell_library, SOFTMAX)
        if THETA == "rows" or THETA == "cells":
            log_theta = tl.load(theta_row(theta, theta_rows, theta_stride, place, THETA) + g, mask=known, other=0.0)
            theta_here, inverse = tl.exp2(log_theta * LOG2E), tl.exp2(-log_theta * LOG2E)
        pi = mean
        if LIKELIHOOD == "zinb":
            pi = tl.load(dropout + place * dropout_stride + g, mask=known, other=0.0)
        _, slope, slope_by_theta, slope_by_dropout = zero_terms(mean, theta_here, inverse, pi, LIKELIHOOD)
        if SOFTMAX:
            slope -= e * ratio
        else:
            slope *= softplus_slope(logits)
        slope *= weight
        slope += tl.load(by_logit + k, mask=is_mark, other=0.0)
        if SOFTMAX:
            slope -= tl.load(proportions + k, mask=is_mark, other=0.0) * slope_sum
        tl.store(slopes + place * slopes_stride + g, slope, mask=g < slopes_stride)
        if BIAS:
            sums += slope
        if THETA == "rows" or THETA == "cells":
            slope_by_theta = slope_by_theta * weight + tl.load(by_theta + k, mask=is_mark, other=0.0)
            tl.store(theta_slopes + place * theta_slopes_stride + g, slope_by_theta, mask=known)
            if BIAS:
                theta_sums += slope_by_theta
        if LIKELIHOOD == "zinb":
            slope_by_dropout = slope_by_dropout * weight + tl.load(by_dropout + k, mask=is_mark, other=0.0)
            tl.store(dropout_slopes + place * dropout_slopes_stride + g, slope_by_dropout, mask=known)
            if BIAS:
                dropout_sums += slope_by_dropout
    if BIAS:
        place = group.to(tl.int64) * n_genes + g
        _put(bias_parts + place, sums, known, ADD)
        if THETA == "cells":
            _put(theta_bias_parts + place, theta_sums, known, ADD)
        if LIKELIHOOD == "zinb":
            _put(dropout_bias_parts + place, dropout_sums, known, ADD)


@triton.jit
def add_rows_kernel(slopes, places, starts, table_grad, n_genes, stride, BLOCK: tl.constexpr):
    """table_grad [rows, genes] += slopes [cells, stride] of each row's cells, places[starts[row]: starts[row + 1]]."""
    row = tl.program_id(0).to(tl.int64)
    g = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    first, last = tl.load(starts + row), tl.load(starts + row + 1)
    if first < last:
        sums = tl.load(table_grad + row * n_genes + g, mask=g < n_genes, other=0.0)
        for k in range(first, last):
            sums += tl.load(slopes + tl.load(places + k) * stride + g, mask=g < n_genes, other=0.0)
        tl.store(table_grad + row * n_genes + g, sums, mask=g < n_genes)
