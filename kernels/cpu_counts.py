"""Counts drawn on a CPU from tiles of logits, cell by cell: the algorithms and random numbers of plain_counts.py.

A cell's genes are visited twice. The first sweep is vector code: softmax, one random word a gene, and a comparison with
the mean, which leaves the candidates for a count above zero. For them alone the likelihood is computed, in float64.
Each thread writes its counts to its own part of a buffer, of which it touches no more than it fills.
"""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from atlasvi.kernels import counter_random, cpu_likelihood, cpu_random, plain_counts, vector_math
from atlasvi.kernels.counter_random import CHUNK, FIRST_BLOCK, LANES, REST_BLOCK, split_seed
from atlasvi.kernels.cpu_likelihood import prepare_softmax
from atlasvi.kernels.cpu_random import HALF_WORD, W, draw_block, philox, to_uniform, u64
from atlasvi.kernels.cpu_threads import run_on_threads
from atlasvi.kernels.cpu_tile import Sweep
from atlasvi.kernels.plain_counts import (
    LARGE_MEAN,
    LEAST_TERM,
    LOG_THETA_BOUND,
    LONG_TAIL,
    MOST_RATE,
    InvalidParametersError,
)
from atlasvi.kernels.vector_math import FASTMATH, exp32, exp64, f32, log1p32, log64

NOTHING = np.zeros((1, 1), np.float32)
ONE_BLOCK = u64(1 << 16)
FIRST, REST, NEXT = u64(FIRST_BLOCK), u64(REST_BLOCK), u64(REST_BLOCK + 1)
# a candidate has v <= mean for the lowest v of its first 31 random bits; the factor covers the rounding of both
CANDIDATE = f32(2.0**31 * (1 + 2.0**-20))
LIMIT, TAIL = f32(LARGE_MEAN), f32(LONG_TAIL)
TWO_PI = 2 * math.pi
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@njit(forceinline=True, fastmath=FASTMATH, error_model="numpy")
def _prepare_softplus(row: np.ndarray) -> Any:
    """Logits become softplus(logit); returns their sum."""
    total = f32(0)
    for g in range(len(row)):
        x = row[g]
        value = f32(0.5) * (x + abs(x)) + log1p32(exp32(-abs(x)))
        row[g] = value
        total += value
    return total


@njit(forceinline=True, error_model="numpy")
def _find_limits(log_theta: np.ndarray, limit: np.ndarray) -> Any:
    """limit = the largest mean that is drawn by inversion; returns the number of NaN."""
    n_nan = 0
    for g in range(len(log_theta)):
        value = log_theta[g]
        limit[g] = min(LIMIT, TAIL * exp32(min(max(value, f32(-80)), f32(80))))
        n_nan += value != value
    return n_nan


@njit(forceinline=True, error_model="numpy")
def _count_nan(values: np.ndarray) -> Any:
    n_nan = 0
    for g in range(len(values)):
        n_nan += values[g] != values[g]
    return n_nan


@njit(forceinline=True, error_model="numpy")
def _flag(row: np.ndarray, scale: Any, limit: np.ndarray, words: np.ndarray, flags: np.ndarray) -> None:
    """flags uint8 = whether a gene is a candidate."""
    for k in range(len(row)):
        mean = row[k] * scale
        word = f32(np.int32(words[k] >> u64(1)))
        flags[k] = (word <= mean * CANDIDATE) | (mean > limit[k if len(limit) > 1 else 0])


@njit(nogil=True, error_model="numpy")
def _find_candidates(
    row: np.ndarray,
    scale: float,
    limit: np.ndarray,
    cell: Any,
    draw: Any,
    key0: Any,
    key1: Any,
    words: np.ndarray,
    flags: np.ndarray,
    genes: np.ndarray,
    high: np.ndarray,
    means: np.ndarray,
) -> int:
    """Write gene, first random word and mean (float64) of each candidate; returns their number.

    words, flags  uint64 and uint8 [CHUNK], overwritten
    """
    n, n_genes = 0, len(row)
    low, top = cell & W, (cell >> HALF_WORD) + FIRST * ONE_BLOCK
    for start in range(0, n_genes, CHUNK):
        position = u64(start // CHUNK * LANES)
        for lane in range(min(LANES, n_genes - start)):
            a, b, c, d = philox(low, top, draw, position + u64(lane), key0, key1)
            words[lane], words[LANES + lane], words[2 * LANES + lane], words[3 * LANES + lane] = a, b, c, d
        n_here, n_limits = min(CHUNK, n_genes - start), len(limit)
        if n_limits == 1:  # one for all genes without dispersion
            _flag(row[start : start + n_here], scale, limit, words, flags)
        else:
            _flag(row[start : start + n_here], scale, limit[start : start + n_here], words, flags)
        first = n
        for k in range(n_here):
            genes[n] = k
            n += flags[k]
        for at in range(first, n):
            k = genes[at]
            genes[at], high[at], means[at] = start + k, words[k], row[start + k] * scale
    return n


@njit(nogil=True, error_model="numpy")
def _draw_rest(
    n: int,
    genes: np.ndarray,
    high: np.ndarray,
    cell: Any,
    draw: Any,
    key0: Any,
    key1: Any,
    uniforms: np.ndarray,
    kept: np.ndarray,
) -> None:
    """The candidates' uniform numbers v, and those that decide whether a count is kept, float64."""
    low, top = cell & W, (cell >> HALF_WORD) + REST * ONE_BLOCK
    for k in range(n):
        a, b, c, _ = philox(low, top, draw, u64(genes[k]) & W, key0, key1)
        uniforms[k], kept[k] = to_uniform(high[k], a), to_uniform(b, c)


@njit(forceinline=True, fastmath={"contract"}, error_model="numpy")
def _prepare_inversion(
    means: np.ndarray, thetas: np.ndarray, odds: np.ndarray, tails: np.ndarray, terms: np.ndarray
) -> None:
    """thetas hold log theta and become theta; odds mean / (theta + mean), tails P(X > 0), terms P(X = 1); float64.

    In three loops: the compiler makes vector code of those alone that have few arrays.
    """
    for k in range(len(thetas)):
        thetas[k] = exp64(min(max(thetas[k], -LOG_THETA_BOUND), LOG_THETA_BOUND))
    for k in range(len(thetas)):
        ratio = means[k] / thetas[k]
        total = min(1 + ratio, 1e300)  # log64 is not for infinity; such a mean is not drawn by inversion
        q = 1 / total
        odds[k] = ratio * q
        tails[k] = min(thetas[k] * (log64(total) + (ratio - (total - 1)) * q), 600.0)
    for k in range(len(thetas)):
        exponent = tails[k]
        zero = exp64(-exponent)
        tails[k] = exponent * (1 - exponent * (0.5 - exponent * (1 / 6))) if exponent < 1e-5 else 1 - zero
        terms[k] = zero * (thetas[k] * odds[k])


@njit(nogil=True, error_model="numpy")
def _invert(uniform: float, tail: float, term: float, slope: float, start: float) -> int:
    """The count k >= 1 with P(X > k) <= uniform < P(X > k - 1); tail is P(X > 0), term is P(X = 1)."""
    k = 1
    tail -= term
    while uniform < tail and term > LEAST_TERM:
        k += 1
        term *= slope + start / k
        tail -= term
    return k


@njit(nogil=True, error_model="numpy")
def _log_factorial(k: float) -> float:
    """log(k!) of k >= 0: Stirling's series at k + 8, less the logarithm of the factors between."""
    product = k + 1
    for j in range(2, 8):
        product *= k + j
    n = k + 8
    s = 1 / (n * n)
    tail = (1 / 12 - s * (1 / 360 - s * (1 / 1260 - s * (1 / 1680)))) / n
    return (n - 0.5) * math.log(n) - n + HALF_LOG_2PI + tail - math.log(product)


@njit(nogil=True, error_model="numpy")
def _mix(uniform: float, mean: float, theta: float, cell: Any, gene: Any, draw: Any, key0: Any, key1: Any) -> int:
    """A count of a large mean; Poisson if theta is infinite."""
    low, top, block = cell & W, cell >> HALF_WORD, NEXT
    rate = mean
    if theta < np.inf:
        d = (theta + 1 if theta < 1 else theta) - 1 / 3
        while True:
            w0, w1, w2, w3 = draw_block(low, top + block * ONE_BLOCK, draw, gene, key0, key1)
            block += u64(1)
            normal = math.sqrt(-2 * math.log(to_uniform(w0, w1)))
            normal *= math.cos((np.float64(np.int64(w2)) + 0.5) * (2.0**-32 * TWO_PI))
            root = 1 + normal / math.sqrt(9 * d)
            cube = root * root * root
            if root > 0:
                bound = 0.5 * normal * normal + d - d * cube + d * math.log(cube)
                if math.log((np.float64(np.int64(w3)) + 0.5) * 2.0**-32) < bound:
                    break
        rate = mean * (d * cube / theta)
        if theta < 1:
            rate *= math.exp(math.log(uniform) / theta)
    rate = min(rate, MOST_RATE)
    if rate <= LARGE_MEAN:
        w0, w1, w2, w3 = draw_block(low, top + block * ONE_BLOCK, draw, gene, key0, key1)
        v, tail = to_uniform(w0, w1), -math.expm1(-rate)
        return _invert(v, tail, math.exp(-rate) * rate, 0.0, rate) if v < tail else 0
    b = 0.931 + 2.53 * math.sqrt(rate)
    a = -0.059 + 0.02483 * b
    log_rate = math.log(rate)
    while True:
        w0, w1, w2, w3 = draw_block(low, top + block * ONE_BLOCK, draw, gene, key0, key1)
        block += u64(1)
        u, v = to_uniform(w0, w1) - 0.5, to_uniform(w2, w3)
        us = 0.5 - abs(u)
        k = np.floor((2 * a / us + b) * u + rate + 0.43)
        if us >= 0.07 and v <= 0.9277 - 3.6224 / (b - 2):
            return int(k)
        if k < 0 or (us < 0.013 and v > us):
            continue
        height = math.log(v) + math.log(1.1239 + 1.1328 / (b - 3.4)) - math.log(a / (us * us) + b)
        if height <= k * log_rate - rate - _log_factorial(k):
            return int(k)


@cache
def make_draw() -> Callable[..., int]:
    """The compiled draw of counts, one for all options.

    draw_cells(has_theta, theta_per_cell, has_dropout, softmax, first, last, logits, library, log_theta, theta_rows,
    dropout, cells, draw, key0, key1, genes, counts, lengths) -> the first cell that can't be drawn, or -1

    For cells [first, last). logits float32 [cells, genes] are overwritten. library float32 [cells]; log_theta float32
    [rows, genes] with theta_rows int64 [cells], or [cells, genes] if theta_per_cell; dropout float32 [cells, genes];
    cells uint64 [cells], their counters. Genes and counts int32 go to the arrays of these names, from index 0 on; their
    number in each cell to lengths int64 [cells].
    """
    modules = vector_math, cpu_likelihood, cpu_random, counter_random, plain_counts
    inlined = b"".join(Path(str(module.__file__)).read_bytes() for module in modules)

    @njit(nogil=True, cache=True, error_model="numpy")
    def draw_cells(
        has_theta: bool,
        theta_per_cell: bool,
        has_dropout: bool,
        softmax: bool,
        first: int,
        last: int,
        logits: np.ndarray,
        library: np.ndarray,
        log_theta: np.ndarray,
        theta_rows: np.ndarray,
        dropout: np.ndarray,
        cells: np.ndarray,
        draw: Any,
        key0: Any,
        key1: Any,
        genes: np.ndarray,
        counts: np.ndarray,
        lengths: np.ndarray,
    ) -> int:
        _ = inlined  # see cpu_likelihood.make_sweep
        n_genes, known, filled = logits.shape[1], -1, 0
        limit = np.full(n_genes if has_theta else 1, LIMIT)
        words, flags = np.empty(CHUNK, np.uint64), np.empty(CHUNK, np.uint8)
        found, high = np.empty(n_genes + 1, np.int64), np.empty(n_genes + 1, np.uint64)
        means, thetas, uniforms, kept, odds, tails, terms = np.empty((7, n_genes + 1))
        for cell in range(first, last):
            row, theta_row = logits[cell], 0
            cell_library, bad = library[cell], 0
            if softmax:
                _, total = prepare_softmax(row)
                scale = cell_library / total
            else:
                total = _prepare_softplus(row)
                scale = cell_library
            if has_theta:
                theta_row = cell if theta_per_cell else theta_rows[cell]
                if theta_per_cell or theta_row != known:
                    known = theta_row
                    bad += _find_limits(log_theta[theta_row], limit)
            if has_dropout:
                bad += _count_nan(dropout[cell])
            largest = np.float64(total) * np.float64(scale)  # mean
            if bad or not (cell_library >= 0 and largest < 3e38):
                return cell
            number = cells[cell]
            n = _find_candidates(row, scale, limit, number, draw, key0, key1, words, flags, found, high, means)
            _draw_rest(n, found, high, number, draw, key0, key1, uniforms, kept)
            if has_theta:
                for k in range(n):
                    thetas[k] = log_theta[theta_row, found[k]]
                _prepare_inversion(means, thetas[:n], odds, tails, terms)
            before = filled
            for k in range(n):
                gene, mean = found[k], means[k]
                if has_theta:
                    tail, term, theta = tails[k], terms[k], thetas[k]
                    slope, start = odds[k], (theta - 1) * odds[k]
                    by_inversion = mean <= limit[gene]
                else:
                    tail, term, theta = -math.expm1(-mean), math.exp(-mean) * mean, np.inf
                    slope, start = 0.0, mean
                    by_inversion = mean <= LIMIT
                if by_inversion and uniforms[k] >= tail:
                    continue
                if has_dropout and not kept[k] * (1 + math.exp(np.float64(dropout[cell, gene]))) < 1:
                    continue
                if by_inversion:
                    count = _invert(uniforms[k], tail, term, slope, start)
                else:
                    count = _mix(uniforms[k], mean, theta, number, u64(gene) & W, draw, key0, key1)
                if count:
                    genes[filled], counts[filled] = gene, count
                    filled += 1
            lengths[cell] = filled - before
        return -1

    return draw_cells


class Sampler:
    """Draws the counts of the cells of a minibatch by tiles; see `sample_counts` for the arguments."""

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
        self.n_genes, self.library, n_cells = n_genes, library.numpy(), len(cells)
        self.per_cell, has_dropout = has_heads
        self.options = table is not None or self.per_cell, self.per_cell, has_dropout, softmax
        self.table = NOTHING if table is None else table.contiguous().numpy().reshape(-1, n_genes)
        self.rows = np.zeros(n_cells, np.int64) if theta_rows is None else theta_rows.numpy()
        self.cells, self.lengths = cells.numpy().astype(np.uint64), np.zeros(n_cells, np.int64)
        self.words = [np.uint64(word) for word in (draw, *split_seed(seed))]
        n_places = n_genes * min(self.tile_cells(n_genes, 1), n_cells)
        self.genes, self.counts = np.empty((2, n_places), np.int32)
        self.parts: list[tuple[np.ndarray, np.ndarray]] = []

    tile_cells, allocate = staticmethod(Sweep.tile_cells), staticmethod(Sweep.allocate)

    @staticmethod
    def project(number: int, hidden: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> Tensor:
        """hidden @ weight.T + bias into `out`: logits of the next tile."""
        return torch.addmm(bias, hidden, weight.T, out=out)

    def take(self, first: int, last: int, logits: list[Tensor | None]) -> None:
        """Draw the counts of cells [first, last) from their logits (overwritten): of genes, log theta, dropouts.

        Raises InvalidParametersError.
        """
        head, log_theta, dropout = (NOTHING if tensor is None else tensor.numpy() for tensor in logits)
        here, n_genes = slice(first, last), self.n_genes
        thetas, lengths = log_theta if self.per_cell else self.table, self.lengths[here]
        given = head, self.library[here], thetas, self.rows[here], dropout, self.cells[here], *self.words
        invalid: list[int] = []

        def draw_part(_: int, begin: int, end: int) -> None:
            at = begin * n_genes
            wrong = make_draw()(*self.options, begin, end, *given, self.genes[at:], self.counts[at:], lengths)
            if wrong >= 0:
                invalid.append(first + wrong)
            n = lengths[begin:end].sum()
            drawn[begin] = self.genes[at : at + n].copy(), self.counts[at : at + n].copy()

        drawn: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        run_on_threads(draw_part, last - first, torch.get_num_threads())
        if invalid:
            raise InvalidParametersError(min(invalid))
        self.parts += [drawn[begin] for begin in sorted(drawn)]

    def finish(self) -> tuple[Tensor, Tensor, Tensor]:
        """indptr int64, genes and counts int32 of all cells."""
        parts = [(self.genes[:0], self.counts[:0]), *self.parts]
        genes, counts = (torch.from_numpy(np.concatenate(each)) for each in zip(*parts))
        indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths)])
        return torch.from_numpy(indptr), genes, counts
