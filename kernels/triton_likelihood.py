"""Likelihood of sparse counts from a tile of logits, by Triton: three kernels, no atomics, the same sums in every run.

    nonzeros_kernel  a program a cell: scale of its softmax; the nonzeros, which it then marks in the tile
    zeros_kernel     a program for some genes of some cells: loss, slopes and the gradient of a table of theta
    slopes_kernel    likewise: the gradients of the logits, and their sums over cells (both are in triton_slopes.py)

In place of the logit of a cell's k-th nonzero the tile gets a NaN with the bits FIRST_MARK + k, which `read_marks`
decodes to k and a logit of minus infinity: the mean is 0 there, and all terms of the zeros vanish. A logit of minus
infinity also pads each row of the tile to `width`, a multiple of 16 for wide loads. NaN in a cell's logits
(which have other bits) make its softmax NaN, so they propagate to the loss and to the gradients of that cell.

Common arguments of the kernels, float32 except CSR. logits: [cells, genes], rows `stride` or `width` apart; theta: log
theta, [genes] ("gene"), rows of a table chosen by theta_rows ("rows"), [cells, genes] ("cells"); dropout: logits
[cells, genes] (ZINB); indptr, genes, counts: CSR; library, weights (of the gradients) [cells]; offsets, scales [cells]:
proportion = exp2(logit * LOG2E - offset) * scale. [nonzeros], times the weight: by_logit, by_theta, by_dropout,
proportions.
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
)

FIRST_MARK = tl.constexpr(-0x400000 + 1)  # as int32: a NaN with its sign bit set, unlike any result of arithmetic


@triton.jit
def read_marks(tile, n):
    """(whether a value marks one of the cell's n nonzeros, which of them, the logit to compute with)."""
    bits = tile.to(tl.int32, bitcast=True)
    is_mark = (bits >= FIRST_MARK) & (bits < n + FIRST_MARK)
    return is_mark, bits - FIRST_MARK, tl.where(is_mark, float("-inf"), tile)


@triton.jit
def theta_row(theta, theta_rows, stride, cell, THETA: tl.constexpr):
    """Pointer to the first log theta of a cell."""
    if THETA == "rows":
        return theta + tl.load(theta_rows + cell) * stride
    elif THETA == "cells":
        return theta + cell.to(tl.int64) * stride
    else:
        return theta


@triton.jit
def mean_of(logits, offset, factor, library, SOFTMAX: tl.constexpr):
    """(mean, exp2(logit * LOG2E - offset)) in counts; factor = library * scale."""
    if SOFTMAX:
        e = tl.exp2(logits * LOG2E - offset)
        return e * factor, e
    else:
        mean = softplus(logits) * library
        return mean, mean


@triton.jit
def _mark_pad(marked, n_genes, width):
    """Write minus infinity to the padding of a row."""
    g = n_genes + tl.arange(0, 16)
    tl.store(marked + g, tl.full([16], float("-inf"), tl.float32), mask=g < width)


@triton.jit
def _read_row(row, marked, n_genes, width, COPY: tl.constexpr, BLOCK: tl.constexpr):
    """(offset, 1 / sum of exp2(logit * LOG2E - offset)) of a row in one pass: each lane rescales its sum as needed."""
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        g = start + tl.arange(0, BLOCK)
        if COPY:  # the row is not read again, but its copy is: keep the copy in the cache
            logits = tl.load(row + g, mask=g < n_genes, other=float("-inf"), eviction_policy="evict_first")
            tl.store(marked + g, logits, mask=g < width)
        else:
            logits = tl.load(row + g, mask=g < n_genes, other=float("-inf"))
        higher = tl.maximum(highest, logits)
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        sums = sums * tl.exp2((highest - shift) * LOG2E) + tl.exp2((logits - shift) * LOG2E)
        highest = higher
    if not COPY:
        _mark_pad(marked, n_genes, width)
    top = tl.max(highest, 0)
    return top * LOG2E, 1.0 / tl.sum(sums * tl.exp2((highest - top) * LOG2E), 0)


@triton.jit
def _join_parts(maxima, sums, n_parts, PARTS: tl.constexpr):
    """The same from the largest logit of each part and its sum of exp2((logit - largest) * LOG2E)."""
    part = tl.arange(0, PARTS)
    highest = tl.load(maxima + part, mask=part < n_parts, other=float("-inf"))
    some = tl.load(sums + part, mask=part < n_parts, other=0.0)
    top = tl.max(highest, 0)
    return top * LOG2E, 1.0 / tl.sum(some * tl.exp2((highest - top) * LOG2E), 0)


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
    proportions,
    by_theta,
    by_dropout,
    large,
    maxima,
    sums,
    n_genes,
    stride,
    width,
    theta_stride,
    dropout_stride,
    n_parts,
    LIKELIHOOD: tl.constexpr,
    SOFTMAX: tl.constexpr,
    THETA: tl.constexpr,
    COPY: tl.constexpr,
    GRADIENTS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    NONZEROS: tl.constexpr,
    LARGE: tl.constexpr,
):
    """Write offsets and scales of a cell, loss and slope_sums of its nonzeros, and each one's values for slopes_kernel.

    marked [cells, width] may be `logits`; COPY if it is not. PARTS: an upper bound of n_parts, for `maxima` and `sums`
    [cells, n_parts] of the softmax, which project_kernel wrote; 0: read the row instead. large int32 [nonzeros]: memory
    for the places of counts above MOST_FACTORS, which are rare, and computed in float64 after the others.
    """
    cell = tl.program_id(0)
    row = logits + cell.to(tl.int64) * stride
    marked += cell.to(tl.int64) * width
    theta = theta_row(theta, theta_rows, theta_stride, cell, THETA)
    dropout += cell.to(tl.int64) * dropout_stride
    weight, cell_library = 1.0, tl.load(library + cell)
    if GRADIENTS:
        weight = tl.load(weights + cell)
    offset, scale = 0.0, 1.0
    if SOFTMAX:
        if PARTS > 0:
            offset, scale = _join_parts(maxima + cell * n_parts, sums + cell * n_parts, n_parts, PARTS)
        else:
            offset, scale = _read_row(row, marked, n_genes, width, COPY, BLOCK)
        tl.store(offsets + cell, offset)
        tl.store(scales + cell, scale)
    else:
        if COPY:
            for start in range(0, width, BLOCK):
                g = start + tl.arange(0, BLOCK)
                tl.store(marked + g, tl.load(row + g, mask=g < n_genes, other=float("-inf")), mask=g < width)
        elif PARTS == 0:
            _mark_pad(marked, n_genes, width)
    tl.debug_barrier()  # below, a thread may read what another thread wrote

    begin, end = tl.load(indptr + cell), tl.load(indptr + cell + 1)
    exact_scale = tl.log(cell_library.to(tl.float64))  # log(mean) - log of exp2(...), or of softplus
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
        tl.debug_barrier()  # otherwise another thread might write a mark before this one loads the logit
        tl.store(marked + g, ((k - begin).to(tl.int32) + FIRST_MARK).to(tl.float32, bitcast=True), mask=inside)
        mean, e = mean_of(logit, offset, cell_library * scale, cell_library, SOFTMAX)
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
                tl.store(proportions + k, e * scale * weight, mask=inside)
            else:
                slope *= softplus_slope(logit)
            if LIKELIHOOD != "poisson":
                tl.store(by_theta + k, slope_by_theta * weight, mask=inside)
        tl.store(by_logit + k, tl.where(is_large, logit, slope * weight), mask=inside)
        tl.store(large + begin + n_large + tl.cumsum(is_large.to(tl.int32), 0) - 1, k.to(tl.int32), mask=is_large)
        n_large += tl.sum(is_large.to(tl.int32), 0)
    tl.debug_barrier()  # below, a thread may read what another thread stored

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
