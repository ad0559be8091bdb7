"""Counts drawn from tiles of logits by Triton: the algorithms and random numbers of plain_counts.py.

draw_kernel  a program for GENES genes of one cell: their counts, which overwrite the logits, and how many are not 0
pack_kernel  likewise: the counts that are not 0, each to its place in the CSR arrays
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from atlasvi.kernels import counter_random, plain_counts, triton_project, triton_tile
from atlasvi.kernels.plain_counts import InvalidParametersError
from atlasvi.kernels.triton_likelihood import mean_of, theta_row
from atlasvi.kernels.triton_math import HALF_LOG_2PI, LOG2E, log1p64, stirling_tail
from atlasvi.kernels.triton_sparse import device_of

GENES, WARPS = 1024, 8  # of a program
CHUNK, LANES = tl.constexpr(counter_random.CHUNK), tl.constexpr(counter_random.LANES)
LARGE_MEAN, LONG_TAIL = tl.constexpr(plain_counts.LARGE_MEAN), tl.constexpr(plain_counts.LONG_TAIL)
MOST_RATE, LEAST_TERM = tl.constexpr(plain_counts.MOST_RATE), tl.constexpr(plain_counts.LEAST_TERM)
LOG_THETA_BOUND = tl.constexpr(plain_counts.LOG_THETA_BOUND)
TO_UNIT, TO_UNIT_LOW = tl.constexpr(2.0**-32), tl.constexpr(2.0**-64)
TO_ANGLE = tl.constexpr(2.0**-32 * 2 * math.pi)


@triton.jit
def at_most(x, bound: tl.constexpr):
    """The smaller of both; NaN stays NaN."""
    return tl.where(x > bound, bound, x)


@triton.jit
def block_of(seed, cell, draw, block, position):
    """The four words, uint32, of one block of random numbers of a cell; see counter_random.draw_words."""
    none = position.to(tl.int64) * 0
    low, high = ((cell & 0xFFFFFFFF) + none).to(tl.uint32), ((cell >> 32) + none + block * 65536).to(tl.uint32)
    return tl.philox(seed, low, high, (draw + none).to(tl.uint32), position.to(tl.uint32))


@triton.jit
def to_uniform(high, low):
    """float64 in (0, 1]."""
    return high.to(tl.float64) * TO_UNIT + (low.to(tl.float64) + 0.5) * TO_UNIT_LOW


@triton.jit
def expm1_of_negative(x):
    """1 - exp(-x) for x >= 0, float64."""
    return tl.where(x < 1e-5, x * (1 - x * (0.5 - x * (1 / 6))), 1 - tl.exp(-x))


@triton.jit
def invert(uniform, tail, term, slope, start, wanted):
    """The number of k >= 0 with uniform < P(X > k) where wanted, else 0; see plain_counts."""
    going = wanted & (uniform < tail)
    count = tl.where(going, 1.0, 0.0).to(tl.float64)
    tail -= term
    k = 1.0
    going = going & (uniform < tail) & (term > LEAST_TERM)
    while tl.max(going.to(tl.int32), 0) > 0:
        k += 1.0
        term = tl.where(going, term * (slope + start / k), term)
        tail = tl.where(going, tail - term, tail)
        count = tl.where(going, k, count)
        going = going & (uniform < tail) & (term > LEAST_TERM)
    return count


@triton.jit
def log_factorial(k):
    """log(k!) of k >= 0, float64: Stirling's series at k + 8, less the logarithm of the factors between."""
    product = k + 1
    for j in tl.static_range(2, 8):
        product *= k + j
    n = k + 8
    return (n - 0.5) * tl.log(n) - n + HALF_LOG_2PI + stirling_tail(n) - tl.log(product)


@triton.jit
def draw_gamma(shape, block, seed, cell, draw, gene, wanted):
    """(gamma draws of shapes >= 1 where wanted, the first blocks that they did not use)."""
    d = shape - 1 / 3
    drawn = d
    going = wanted
    while tl.max(going.to(tl.int32), 0) > 0:
        a, b, c, e = block_of(seed, cell, draw, block, gene)
        block += going.to(tl.int32)
        normal = tl.sqrt(-2 * tl.log(to_uniform(a, b))) * tl.cos((c.to(tl.float64) + 0.5) * TO_ANGLE)
        root = 1 + normal / tl.sqrt(9 * d)
        cube = root * root * root
        bound = 0.5 * normal * normal + d - d * cube + d * tl.log(tl.where(root > 0, cube, 1.0))
        taken = going & (root > 0) & (tl.log((e.to(tl.float64) + 0.5) * TO_UNIT) < bound)
        drawn = tl.where(taken, d * cube, drawn)
        going = going & (taken == 0)
    return drawn, block


@triton.jit
def reject(rate, block, seed, cell, draw, gene, wanted):
    """Poisson counts of rates above 10 where wanted, by PTRS."""
    b = 0.931 + 2.53 * tl.sqrt(rate)
    a = -0.059 + 0.02483 * b
    quick_height, log_rate = 0.9277 - 3.6224 / (b - 2), tl.log(rate)
    scale = tl.log(1.1239 + 1.1328 / (b - 3.4))
    count = tl.zeros(rate.shape, tl.float64)
    going = wanted
    while tl.max(going.to(tl.int32), 0) > 0:
        w0, w1, w2, w3 = block_of(seed, cell, draw, block, gene)
        block += going.to(tl.int32)
        u, v = to_uniform(w0, w1) - 0.5, to_uniform(w2, w3)
        us = 0.5 - tl.abs(u)
        k = tl.floor((2 * a / us + b) * u + rate + 0.43)
        quick = (us >= 0.07) & (v <= quick_height)
        possible = (k >= 0) & ((us >= 0.013) | (v <= us))
        at = tl.where(possible, k, 0.0)
        height = tl.log(v) + scale - tl.log(a / (us * us) + b)
        taken = going & (quick | (possible & (height <= at * log_rate - rate - log_factorial(at))))
        count = tl.where(taken, k, count)
        going = going & (taken == 0)
    return count


@triton.jit
def mix(uniform, mean, theta, seed, cell, draw, gene, wanted, HAS_THETA: tl.constexpr):
    """Counts of large means where wanted, else 0."""
    block = tl.zeros(mean.shape, tl.int32) + 2
    rate = tl.where(wanted, mean, 1.0)
    if HAS_THETA:
        small = theta < 1
        gamma, block = draw_gamma(tl.where(small, theta + 1, theta), block, seed, cell, draw, gene, wanted)
        rate *= gamma / theta
        rate *= tl.where(small, tl.exp(tl.log(uniform) / theta), 1.0)
        rate = tl.where(wanted, rate, 1.0)
    rate = at_most(rate, MOST_RATE)
    low = wanted & (rate <= LARGE_MEAN)
    w0, w1, _, _ = block_of(seed, cell, draw, block, gene)
    few = at_most(rate, LARGE_MEAN)
    count = invert(to_uniform(w0, w1), expm1_of_negative(few), tl.exp(-few) * few, few * 0, few, low)
    many = wanted & (rate > LARGE_MEAN)
    return count + reject(tl.where(many, rate, LARGE_MEAN), block, seed, cell, draw, gene, many)


@triton.jit
def draw_kernel(
    logits,
    counts,
    theta,
    theta_rows,
    dropout,
    library,
    cells,
    words,
    maxima,
    sums,
    lengths,
    invalid,
    n_genes,
    stride,
    theta_stride,
    dropout_stride,
    n_parts,
    n_blocks,
    HAS_DROPOUT: tl.constexpr,
    SOFTMAX: tl.constexpr,
    THETA: tl.constexpr,
    PARTS: tl.constexpr,
    GENES: tl.constexpr,
):
    """Write counts int32 [cells, stride] (the memory of logits), and lengths and invalid int32 [cells, n_blocks].

    words int64 [2]: seed and number of the draw. maxima and sums [cells, n_parts] of the softmax, PARTS >= n_parts.
    """
    row, block = tl.program_id(0), tl.program_id(1)
    place = row.to(tl.int64)
    g = block * GENES + tl.arange(0, GENES)
    known = g < n_genes
    logit = tl.load(logits + place * stride + g, mask=known, other=float("-inf"))
    offset, scale, cell_library = 0.0, 1.0, tl.load(library + row)
    if SOFTMAX:
        part = tl.arange(0, PARTS)
        highest = tl.load(maxima + place * n_parts + part, mask=part < n_parts, other=float("-inf"))
        some = tl.load(sums + place * n_parts + part, mask=part < n_parts, other=0.0)
        top = tl.max(highest, 0)
        offset, scale = top * LOG2E, 1.0 / tl.sum(some * tl.exp2((highest - top) * LOG2E), 0)
    mean, _ = mean_of(logit, offset, cell_library * scale, cell_library, SOFTMAX)
    wrong = known & (((mean >= 0) & (mean < float("inf"))) == 0)
    wrong = wrong | (known & (mean * 0 + cell_library < 0))
    limit, log_theta = tl.full([GENES], LARGE_MEAN, tl.float32), tl.zeros([GENES], tl.float32)
    if THETA != "none":
        log_theta = tl.load(theta_row(theta, theta_rows, theta_stride, row, THETA) + g, mask=known, other=0.0)
        wrong = wrong | (log_theta != log_theta)
        log_theta = at_most(-at_most(-log_theta, LOG_THETA_BOUND), LOG_THETA_BOUND)
        limit = at_most(tl.exp2(log_theta * LOG2E) * LONG_TAIL, LARGE_MEAN)
    mean = tl.where(known & (wrong == 0), mean, 0.0)

    seed, draw, cell = tl.load(words), tl.load(words + 1), tl.load(cells + row)
    a, b, c, d = block_of(seed, cell, draw, 0, g // CHUNK * LANES + g % LANES)
    which = g % CHUNK // LANES
    high = tl.where(which < 2, tl.where(which == 0, a, b), tl.where(which == 2, c, d))
    low, kept_high, kept_low, _ = block_of(seed, cell, draw, 1, g)
    uniform, by_inversion = to_uniform(high, low), mean <= limit
    mu = mean.to(tl.float64)
    theta64, few = mu, tl.where(by_inversion, mu, 0.0)
    if THETA != "none":
        theta64 = tl.exp(log_theta.to(tl.float64))
        odds = few / (theta64 + few)
        exponent = theta64 * log1p64(few / theta64)
        term = tl.exp(-exponent) * (theta64 * odds)
        count = invert(uniform, expm1_of_negative(exponent), term, odds, (theta64 - 1) * odds, by_inversion)
    else:
        count = invert(uniform, expm1_of_negative(few), tl.exp(-few) * few, few * 0, few, by_inversion)
    slow = known & (mean > limit)  # NaN is neither, and would never be accepted
    if tl.max(slow.to(tl.int32), 0) > 0:
        count += mix(uniform, mu, theta64, seed, cell, draw, g, slow, THETA != "none")
    if HAS_DROPOUT:
        pi = tl.load(dropout + place * dropout_stride + g, mask=known, other=0.0)
        wrong = wrong | (pi != pi)
        kept = to_uniform(kept_high, kept_low) * (1 + tl.exp(pi.to(tl.float64))) < 1
        count = tl.where(kept, count, 0.0)
    count = tl.where(known, count, 0.0).to(tl.int32)
    tl.store(counts + place * stride + g, count, mask=known)
    tl.store(lengths + place * n_blocks + block, tl.sum((count > 0).to(tl.int32), 0))
    tl.store(invalid + place * n_blocks + block, tl.max(wrong.to(tl.int32), 0))


@triton.jit
def pack_kernel(tile, starts, genes, counts, n_genes, stride, n_blocks, GENES: tl.constexpr):
    """Write the counts above 0 of a block of genes, and their genes, from starts int64 [cells, n_blocks] on."""
    place, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    g = block * GENES + tl.arange(0, GENES)
    count = tl.load(tile + place * stride + g, mask=g < n_genes, other=0)
    drawn = count > 0
    to = tl.load(starts + place * n_blocks + block) + tl.cumsum(drawn.to(tl.int32), 0) - 1
    tl.store(genes + to, g, mask=drawn)
    tl.store(counts + to, count, mask=drawn)


class Sampler:
    """Draws the counts of the cells of a minibatch by tiles; see `sample_counts` for the arguments."""

    tile_cells, allocate = staticmethod(triton_tile.Sweep.tile_cells), staticmethod(triton_tile.Sweep.allocate)

    def __init__(
        self,
        n_genes: int,
        library: Tensor,
        table: Tensor | None,
        theta_rows: Tensor | None,
        has_heads: tuple[bool, bool],
        softmax: bool,
        seed: int,
        cells: Tensor,
        draw: int,
    ) -> None:
        """has_heads: whether log theta and dropouts are given with the logits, for each cell and gene."""
        self.n_genes, self.library, self.cells, self.softmax = n_genes, library, cells, softmax
        self.table, self.theta_rows = None if table is None else table.contiguous(), theta_rows
        words = torch.tensor([seed - 2**64 if seed >= 2**63 else seed, draw])  # the seed's bits
        self.words = words.to(library.device)
        self.parts: tuple[Tensor, Tensor] | None = None
        self.n_blocks = triton.cdiv(n_genes, GENES)
        self.lengths, self.packed = [cells.new_zeros(1)], [(cells.new_empty(0).int(), cells.new_empty(0).int())]

    def project(self, number: int, hidden: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> Tensor:
        """hidden @ weight.T + bias into `out`: logits of the next tile."""
        if number > 0 or not self.softmax:
            return triton_project.project(hidden, weight, bias, out)
        maxima, sums = self.library.new_empty(2, len(hidden), triton_project.count_parts(self.n_genes))
        self.parts = maxima, sums
        return triton_project.project(hidden, weight, bias, out, maxima, sums)

    def take(self, first: int, last: int, logits: list[Tensor | None]) -> None:
        """Draw the counts of cells [first, last) from their logits (overwritten): of genes, log theta, dropouts.

        Raises InvalidParametersError.
        """
        head, theta, dropout = logits
        assert head is not None
        kind, rows = "cells", self.cells
        if theta is None:
            theta, kind = self.table, "none" if self.table is None else "gene"
        if self.theta_rows is not None:
            kind, rows = "rows", self.theta_rows[first:last]
        # a kernel needs some tensor even for arguments that it does not use
        has_dropout = dropout is not None
        theta, dropout = (head if tensor is None else tensor for tensor in (theta, dropout))
        maxima, sums = self.parts or (head, head)
        n_parts = 0 if self.parts is None else maxima.shape[1]
        lengths, invalid = torch.zeros(2, last - first, self.n_blocks, dtype=torch.int32, device=head.device)
        tile, grid = head.view(torch.int32), (last - first, self.n_blocks)
        with device_of(head):
            draw_kernel[grid](
                head, tile, theta, rows, dropout, self.library[first:last], self.cells[first:last], self.words, maxima,
                sums, lengths, invalid, self.n_genes, head.stride(0), theta.stride(0) if theta.dim() == 2 else 0,
                dropout.stride(0), n_parts, self.n_blocks, has_dropout, self.softmax, kind,
                triton.next_power_of_2(n_parts) if n_parts else 0, GENES, num_warps=WARPS,
            )  # fmt: skip
            if bool(invalid.any()):
                raise InvalidParametersError(first + int(invalid.any(1).nonzero()[0, 0]))
            ends = lengths.flatten().cumsum(0)
            genes, counts = torch.empty(2, int(ends[-1]), dtype=torch.int32, device=head.device)
            pack_kernel[grid](
                tile, ends - lengths.flatten(), genes, counts, self.n_genes, head.stride(0), self.n_blocks, GENES,
                num_warps=WARPS,
            )  # fmt: skip
        self.lengths.append(lengths.sum(1))
        self.packed.append((genes, counts))

    def finish(self) -> tuple[Tensor, Tensor, Tensor]:
        """indptr int64, genes and counts int32 of all cells."""
        genes, counts = (torch.cat(each) for each in zip(*self.packed))
        return torch.cat(self.lengths).cumsum(0), genes, counts
