"""Likelihood of sparse counts from a tile of logits, by Triton: three kernels, no atomics, the same sums at every run.

    nonzeros_kernel  a program a cell: scale of its softmax; the nonzeros, which it then takes out of the tile
    zeros_kernel     a program for some genes of some cells: loss, slopes and the gradient of a table of theta
    slopes_kernel    a program a cell: gradients in place of the logits, those of the nonzeros last

A nonzero is taken out by a logit of minus infinity: its mean is 0, and all terms of the zeros vanish there. So is what
pads a row of the tile to `width`, a multiple of 16 that lets loads be wide. A number that is none makes the cell's sum
of exponentials none, and so all that depends on it.

Arguments that kernels share, float32 but for CSR. logits: [cells, genes], rows `stride` or `width` apart; theta: log
theta, [genes] ("gene"), rows of a table chosen by theta_rows ("rows"), [cells, genes] ("cells"); dropout: logits
[cells, genes] (ZINB); indptr, genes, counts: CSR; library, weights (of the gradients) [cells]; offsets, scales [cells]:
share = exp2(logit * LOG2E - offset) * scale. Of each nonzero, times the weight: by_logit, by_theta, by_dropout, shares.
"""

import triton
import triton.language as tl

from atlasvi.kernels.triton_math import (
    LOG2E,
    MOST_FACTORS,
    large_nonzero_terms,
    log1p64,
    sigmoid,
    small_nonzero_terms,
    softplus,
    softplus_slope,
    zero_terms,
)


@triton.jit
def _theta_row(theta, theta_rows, stride, cell, THETA: tl.constexpr):
    """Where the log theta of a cell begin."""
    if THETA == "rows":
        return theta + tl.load(theta_rows + cell) * stride
    elif THETA == "cells":
        return theta + cell.to(tl.int64) * stride
    else:
        return theta


@triton.jit
def _mean_of(logits, offset, factor, library, SOFTMAX: tl.constexpr):
    """(mean, exp2(logit * LOG2E - offset)) in counts; factor = library * scale."""
    if SOFTMAX:
        e = tl.exp2(logits * LOG2E - offset)
        return e * factor, e
    else:
        mean = softplus(logits) * library
        return mean, mean


@triton.jit
def _mark_pad(marked, n_genes, width):
    """Takes out what pads a row."""
    g = n_genes + tl.arange(0, 16)
    tl.store(marked + g, tl.full([16], float("-inf"), tl.float32), mask=g < width)


@triton.jit
def _softmax_scale(row, marked, n_genes, width, COPY: tl.constexpr, BLOCK: tl.constexpr):
    """(offset, 1 / sum of exp2(logit * LOG2E - offset)) of a row."""
    lanes = tl.arange(0, BLOCK)
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, width, BLOCK):
        g = start + lanes
        if COPY:  # the row is not read again, and its copy is: what the cache keeps is to be the copy
            logits = tl.load(row + g, mask=g < n_genes, other=float("-inf"), eviction_policy="evict_first")
            tl.store(marked + g, logits, mask=g < width)
        else:
            logits = tl.load(row + g, mask=g < n_genes, other=float("-inf"))
        highest = tl.maximum(highest, logits)
    if not COPY:
        _mark_pad(marked, n_genes, width)
    tl.debug_barrier()  # what is read below may be what another thread wrote
    offset = tl.max(highest, 0) * LOG2E
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        g = start + lanes
        logits = tl.load(marked + g, mask=g < width, other=float("-inf"))
        sums += tl.exp2(logits * LOG2E - offset)
    return offset, 1.0 / tl.sum(sums, 0)


@triton.jit
def nonzeros_kernel(
    logits,
    marked,
    theta,
    theta_rows,
    dropout,
    indptr,
    genes,
    counts,
    library,
    weights,
    loss,
    offsets,
    scales,
    slope_sums,
    by_logit,
    shares,
    by_theta,
    by_dropout,
    large,
    n_genes,
    stride,
    width,
    theta_stride,
    dropout_stride,
    LIKELIHOOD: tl.constexpr,
    SOFTMAX: tl.constexpr,
    THETA: tl.constexpr,
    COPY: tl.constexpr,
    GRADIENTS: tl.constexpr,
    BLOCK: tl.constexpr,
    NONZEROS: tl.constexpr,
    LARGE: tl.constexpr,
):
    """Writes offsets and scales of a cell, loss and slope_sums of its nonzeros, and what slopes_kernel needs of each.

    marked [cells, width] may be `logits`; COPY if it is not. large int32 [nonzeros]: room for the places of the counts
    past MOST_FACTORS, which are rare, and done in float64 once the others are.
    """
    cell = tl.program_id(0)
    row = logits + cell.to(tl.int64) * stride
    marked += cell.to(tl.int64) * width
    theta = _theta_row(theta, theta_rows, theta_stride, cell, THETA)
    dropout += cell.to(tl.int64) * dropout_stride
    weight, cell_library = 1.0, tl.load(library + cell)
    if GRADIENTS:
        weight = tl.load(weights + cell)
    offset, scale = 0.0, 1.0
    if SOFTMAX:
        offset, scale = _softmax_scale(row, marked, n_genes, width, COPY, BLOCK)
        tl.store(offsets + cell, offset)
        tl.store(scales + cell, scale)
    else:
        if COPY:
            for start in range(0, width, BLOCK):
                g = start + tl.arange(0, BLOCK)
                tl.store(marked + g, tl.load(row + g, mask=g < n_genes, other=float("-inf")), mask=g < width)
        else:
            _mark_pad(marked, n_genes, width)
        tl.debug_barrier()  # as in _softmax_scale

    begin, end = tl.load(indptr + cell), tl.load(indptr + cell + 1)
    exact_scale = tl.log(cell_library.to(tl.float64))  # log(mean) less that of exp2(...), or of softplus
    if SOFTMAX:
        exact_scale += tl.log(tl.cast(scale, tl.float64))
    lanes = tl.arange(0, NONZEROS)
    value, slope_sum = tl.zeros([NONZEROS], tl.float32), tl.zeros([NONZEROS], tl.float32)
    n_large = 0
    for start in range(begin, end, NONZEROS):
        k = start + lanes
        inside = k < end
        g = tl.load(genes + k, mask=inside, other=0).to(tl.int32)
        x = tl.load(counts + k, mask=inside, other=1).to(tl.float32)
        logit = tl.load(marked + g, mask=inside, other=0.0)
        tl.store(marked + g, tl.full([NONZEROS], float("-inf"), tl.float32), mask=inside)
        mean, e = _mean_of(logit, offset, cell_library * scale, cell_library, SOFTMAX)
        if SOFTMAX:
            log_mean = (logit * LOG2E - offset) / LOG2E + exact_scale.to(tl.float32)
        else:
            log_mean = tl.where(logit > -15.0, tl.log(softplus(logit)), logit) + exact_scale.to(tl.float32)
        theta_here = mean
        if LIKELIHOOD != "poisson":
            theta_here = tl.exp2(tl.load(theta + g, mask=inside, other=0.0) * LOG2E)
        nll, slope, slope_by_theta = small_nonzero_terms(x, log_mean, mean, theta_here, LIKELIHOOD)
        is_large = inside & (x > MOST_FACTORS)
        is_small = inside & (x <= MOST_FACTORS)
        value += tl.where(is_small, nll, 0.0)
        slope_sum += tl.where(is_small, slope, 0.0)
        if LIKELIHOOD == "zinb":
            pi = tl.load(dropout + g, mask=inside, other=0.0)
            value += tl.where(inside, softplus(pi), 0.0)
            if GRADIENTS:
                tl.store(by_dropout + k, sigmoid(pi) * weight, mask=inside)
        if GRADIENTS:
            if SOFTMAX:
                tl.store(shares + k, e * scale * weight, mask=inside)
            else:
                slope *= softplus_slope(logit)
            if LIKELIHOOD != "poisson":
                tl.store(by_theta + k, slope_by_theta * weight, mask=inside)
        tl.store(by_logit + k, tl.where(is_large, logit, slope * weight), mask=inside)
        tl.store(large + begin + n_large + tl.cumsum(is_large.to(tl.int32), 0) - 1, k.to(tl.int32), mask=is_large)
        n_large += tl.sum(is_large.to(tl.int32), 0)
    tl.debug_barrier()  # what was put by may be another thread's

    exact_value, exact_slope_sum = tl.sum(value, 0).to(tl.float64), tl.sum(slope_sum, 0).to(tl.float64)
    exact_lanes = tl.arange(0, LARGE)
    for start in range(0, n_large, LARGE):
        inside = start + exact_lanes < n_large
        k = tl.load(large + begin + start + exact_lanes, mask=inside, other=0)
        g = tl.load(genes + k, mask=inside, other=0).to(tl.int32)
        x = tl.load(counts + k, mask=inside, other=16).to(tl.float64)
        logit32 = tl.load(by_logit + k, mask=inside, other=0.0)
        logit = logit32.to(tl.float64)
        if SOFTMAX:
            log_mean = (logit * LOG2E - tl.cast(offset, tl.float64)) / LOG2E + exact_scale
        else:
            soft = tl.maximum(logit, 0.0) + log1p64(tl.exp(-tl.abs(logit)))
            log_mean = tl.where(logit > -15.0, tl.log(soft), logit) + exact_scale
        theta_here = log_mean
        if LIKELIHOOD != "poisson":
            theta_here = tl.exp(tl.load(theta + g, mask=inside, other=0.0).to(tl.float64))
        nll, slope, slope_by_theta = large_nonzero_terms(x, log_mean, theta_here, LIKELIHOOD)
        exact_value += tl.sum(tl.where(inside, nll, 0.0), 0)
        exact_slope_sum += tl.sum(tl.where(inside, slope, 0.0), 0)
        if GRADIENTS:
            if not SOFTMAX:
                slope *= softplus_slope(logit32)
            tl.store(by_logit + k, (slope * weight).to(tl.float32), mask=inside)
            if LIKELIHOOD != "poisson":
                tl.store(by_theta + k, (slope_by_theta * weight).to(tl.float32), mask=inside)
    tl.store(loss + cell, exact_value.to(tl.float32))
    tl.store(slope_sums + cell, exact_slope_sum.to(tl.float32))


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
    CELLS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums over the zeros: writes loss_parts and slope_parts [cells, n_blocks], adds to theta_parts [groups, genes].

    A program has a block of genes, and CELLS cells one after the other: with one theta a gene it is read once for them,
    and their slopes by it are summed here.
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
    for cell in range(group * CELLS, tl.minimum(group * CELLS + CELLS, n_cells)):
        cell_library, offset, factor = tl.load(library + cell), 0.0, 0.0
        if SOFTMAX:
            offset, factor = tl.load(offsets + cell), cell_library * tl.load(scales + cell)
        place = tl.full([], cell, tl.int64)
        logits = tl.load(marked + place * width + g, mask=g < width, other=float("-inf"))
        mean, _ = _mean_of(logits, offset, factor, cell_library, SOFTMAX)
        if THETA == "rows" or THETA == "cells":
            log_theta = tl.load(_theta_row(theta, theta_rows, theta_stride, place, THETA) + g, mask=known, other=0.0)
            theta_here, inverse = tl.exp2(log_theta * LOG2E), tl.exp2(-log_theta * LOG2E)
        pi = mean
        if LIKELIHOOD == "zinb":
            pi = tl.load(dropout + place * dropout_stride + g, mask=known, other=0.0)
        loss, slope, by_theta, _ = zero_terms(mean, theta_here, inverse, pi, LIKELIHOOD)
        tl.store(loss_parts + place * n_blocks + block, tl.sum(loss, 0))
        if GRADIENTS:
            if SOFTMAX:
                tl.store(slope_parts + place * n_blocks + block, tl.sum(slope, 0))
            if THETA == "gene":
                theta_sums += by_theta * tl.load(weights + cell)
    if GRADIENTS and THETA == "gene":
        parts = theta_parts + group.to(tl.int64) * n_genes + g
        tl.store(parts, tl.load(parts, mask=known, other=0.0) + theta_sums, mask=known)


@triton.jit
def slopes_kernel(
    marked,
    theta,
    theta_rows,
    dropout,
    indptr,
    genes,
    library,
    weights,
    offsets,
    scales,
    slope_sums,
    slope_parts,
    by_logit,
    shares,
    by_theta,
    by_dropout,
    slopes,
    theta_slopes,
    dropout_slopes,
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
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    NONZEROS: tl.constexpr,
):
    """Writes the gradients of the logits of a cell, of its log theta unless one a gene, and of its dropouts.

    Each may take the place of what it is the gradient of. Through the softmax: slope - share * sum of slopes.
    """
    cell = tl.program_id(0).to(tl.int64)
    marked += cell * width
    slopes += cell * slopes_stride
    theta = _theta_row(theta, theta_rows, theta_stride, cell, THETA)
    theta_slopes += cell * theta_slopes_stride
    dropout += cell * dropout_stride
    dropout_slopes += cell * dropout_slopes_stride
    weight, cell_library = tl.load(weights + cell), tl.load(library + cell)
    offset, factor, ratio, slope_sum = 0.0, 0.0, 0.0, 0.0
    if SOFTMAX:
        parts = tl.arange(0, PARTS)
        slope_sum = tl.load(slope_sums + cell)
        slope_sum += tl.sum(tl.load(slope_parts + cell * n_blocks + parts, mask=parts < n_blocks, other=0.0), 0)
        scale = tl.load(scales + cell)
        offset, factor, ratio = tl.load(offsets + cell), cell_library * scale, slope_sum * scale
    lanes = tl.arange(0, BLOCK)
    for start in range(0, width, BLOCK):
        g = start + lanes
        known = g < n_genes
        logits = tl.load(marked + g, mask=g < width, other=float("-inf"))
        mean, e = _mean_of(logits, offset, factor, cell_library, SOFTMAX)
        theta_here = mean
        inverse = mean
        if LIKELIHOOD != "poisson":
            log_theta = tl.load(theta + g, mask=known, other=0.0) * LOG2E
            theta_here, inverse = tl.exp2(log_theta), tl.exp2(-log_theta)
        pi = mean
        if LIKELIHOOD == "zinb":
            pi = tl.load(dropout + g, mask=known, other=0.0)
        _, slope, slope_by_theta, slope_by_dropout = zero_terms(mean, theta_here, inverse, pi, LIKELIHOOD)
        if SOFTMAX:
            slope -= e * ratio
        else:
            slope *= softplus_slope(logits)
        tl.store(slopes + g, slope * weight, mask=g < slopes_stride)
        if THETA == "rows" or THETA == "cells":
            tl.store(theta_slopes + g, slope_by_theta * weight, mask=known)
        if LIKELIHOOD == "zinb":
            tl.store(dropout_slopes + g, slope_by_dropout * weight, mask=known)
    tl.debug_barrier()  # the nonzeros come after what was written in their places

    begin, end = tl.load(indptr + cell), tl.load(indptr + cell + 1)
    for start in range(begin, end, NONZEROS):
        k = start + tl.arange(0, NONZEROS)
        inside = k < end
        g = tl.load(genes + k, mask=inside, other=0).to(tl.int32)
        slope = tl.load(by_logit + k, mask=inside, other=0.0)
        if SOFTMAX:
            slope -= tl.load(shares + k, mask=inside, other=0.0) * slope_sum
        tl.store(slopes + g, slope, mask=inside)
        if THETA == "rows" or THETA == "cells":
            tl.store(theta_slopes + g, tl.load(by_theta + k, mask=inside, other=0.0), mask=inside)
        if LIKELIHOOD == "zinb":
            tl.store(dropout_slopes + g, tl.load(by_dropout + k, mask=inside, other=0.0), mask=inside)


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
