"""Likelihood of sparse counts from decoder logits on a CPU: value and gradients, cell by cell, in place.

The file has more than 400 lines because its functions are the parts of one loop over genes, into which they are
compiled: who changes one of them must see the others.

Parametrisation of Lopez et al. 2018 (Nature Methods 15:1053): mean mu, inverse dispersion theta, variance
mu + mu**2 / theta; exact, no epsilon inside the logarithms. In nats, with r = mu / theta:

    NB       x = 0: theta log1p(r)
             x > 0: theta log1p(r) + x log((theta + mu) / mu) - log(theta (theta + 1) ... (theta + x - 1)) + log(x!)
    ZINB     x = 0: softplus(-pi) - softplus(-pi - theta log1p(r)), pi the logit of a dropout
             x > 0: softplus(pi) + NB
    Poisson  mu - x log(mu) + log(x!)

The zeros, nearly all elements, are computed in one sweep of vector code in float32. For the sweep, the mean of each
nonzero is set to zero, where its terms vanish; nonzeros are computed in float64, since for large counts the result is a
small difference of large terms. Slopes are derivatives by log(mu); the softmax turns them into
slope - proportion * sum(slopes).

Loops that sum do not store to another array: the compiler makes two versions of such a loop, one for arrays that may
overlap, which sum in different orders. The addresses of the arrays would decide which one runs, and so the last digit.

Functions with FASTMATH are inlined into their callers. Each compiled caller would else bring a copy of a function that
it calls, the linker takes the copy that the process has loaded first, and copies differ in their last digits: a process
that compiles would compute other bits than one that finds compiled code in numba's cache.
"""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from atlasvi.kernels import vector_math
from atlasvi.kernels.reference import Likelihood
from atlasvi.kernels.vector_math import FASTMATH, exp32, f32, log1p32, log1p_rest32, log64

FEW_FACTORS = 6
MOST_FACTORS = 16  # of theta (theta + 1) ...: up to this number their product fits float64 for every theta
DIRECT_SUM = 64
PART = 4096  # genes: float32 sums stay short, and the rows of a part stay in the fastest cache
LOG_FACTORIAL = np.array([math.lgamma(x + 1) for x in range(MOST_FACTORS + 1)])


@njit(inline="always", fastmath=FASTMATH, error_model="numpy")
def softplus32(x: Any) -> Any:
    """log(1 + exp(x)); NaN if x is NaN, which max(x, 0) would lose."""
    return f32(0.5) * (x + abs(x)) + log1p32(exp32(-abs(x)))


@njit(inline="always", fastmath=FASTMATH, error_model="numpy")
def sigmoid32(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    t = exp32(-abs(x))
    return (f32(1) if x >= 0 else t) / (f32(1) + t)


@njit(nogil=True, cache=True, error_model="numpy")
def _digamma(t: float) -> float:
    """Digamma of t > 0: shifted up, then Stirling's series (Abramowitz and Stegun 6.3.18)."""
    shift = 0.0
    while t < 8:
        shift -= 1 / t
        t += 1
    s = 1 / (t * t)
    return shift + math.log(t) - 0.5 / t - s * (1 / 12 - s * (1 / 120 - s * (1 / 252 - s / 240)))


@njit(nogil=True, cache=True, error_model="numpy")
def _stirling_tail(t: float) -> float:
    """lgamma(t) - (t - 1/2) log(t) + t - log(2 pi) / 2 for large t."""
    return 1 / (12 * t) - 1 / (360 * t**3)


@njit(nogil=True, cache=True, error_model="numpy")
def _log1p(r: float) -> float:
    """log(1 + r) for r >= 0; the series is far cheaper than the C library's function, and as exact."""
    return r * (1 - r * (1 / 2 - r * (1 / 3 - r / 4))) if r < 1e-4 else math.log(1 + r)


@njit(nogil=True, cache=True, error_model="numpy")
def _nb_nonzero(x: Any, log_mean: float, mean: float, theta: float) -> tuple[float, float, float]:
    """(nll, d nll / d log mean, d nll / d log theta) of one count x > 0."""
    by_theta = 1 / theta
    r = mean * by_theta
    log1p_ratio, by_total = _log1p(r), by_theta / (1 + r)
    if x <= MOST_FACTORS:
        product, harmonic = 1.0, by_theta
        for j in range(1, x):
            product *= 1 + j * by_theta
            harmonic += 1 / (theta + j)
        # log of theta (theta + 1) ... (theta + x - 1) / total**x, whose first factor is -log1p_ratio
        rising, log_factorial = -(x * log1p_ratio), 0.0  # x may be unsigned: do not negate it
        if x > 1:
            rising, log_factorial = rising + math.log(product), LOG_FACTORIAL[x]
    else:
        log_factorial = math.lgamma(x + 1.0)
        if theta < 1e3:
            rising = math.lgamma(x + theta) - math.lgamma(theta) + x * math.log(by_total)
            harmonic = _digamma(x + theta) - _digamma(theta)
        else:  # the two lgammas agree in most digits: Stirling's series, its large terms cancelled by hand
            rising = (x + theta - 0.5) * math.log1p(x / theta) - x - x * log1p_ratio
            rising += _stirling_tail(x + theta) - _stirling_tail(theta)
            harmonic = math.log1p(x / theta) + 0.5 * x / (theta * (x + theta))
            harmonic -= (1 / (x + theta) ** 2 - 1 / theta**2) / 12
        if x <= DIRECT_SUM:
            harmonic = 0.0
            for j in range(x):
                harmonic += 1 / (theta + j)
    loss = theta * log1p_ratio + log_factorial - rising - x * log_mean
    return loss, (mean - x) * theta * by_total, theta * (log1p_ratio + (x - mean) * by_total - harmonic)


@njit(error_model="numpy")  # no fastmath, which would lose the low-order digits
def _nb_small_counts(counts: np.ndarray, log_means: np.ndarray, means: np.ndarray, thetas: np.ndarray) -> None:
    """The same for counts up to FEW_FACTORS, in vector code. All arrays float64 [counts]: log_means become losses
    without log(x!), means become slopes by log mean, thetas slopes by log theta.

    With P = (1 + 1 / theta) ... (1 + (x - 1) / theta), the harmonic sum is (x - P' / (theta P)) / theta.
    """
    for k in range(len(counts)):
        x, mean, theta = counts[k], means[k], thetas[k]
        by_theta = 1 / theta
        product, derivative = 1.0, 0.0
        for j in range(1, FEW_FACTORS):
            factor = np.float64(j) if x > j else 0.0
            derivative = derivative * (1 + factor * by_theta) + factor * product
            product *= 1 + factor * by_theta
        r = mean * by_theta
        total = 1 + r
        q = 1 / total
        log1p_ratio = log64(total) + (r - (total - 1)) * q
        log_means[k] = (theta + x) * log1p_ratio - log64(product) - x * log_means[k]
        means[k] = (mean - x) * q
        thetas[k] = theta * log1p_ratio + (x - mean) * q - x + by_theta * derivative / product


@njit(error_model="numpy")
def _nb_nonzeros(
    counts: np.ndarray, log_means: np.ndarray, means: np.ndarray, thetas: np.ndarray, xs: np.ndarray, large: np.ndarray
) -> float:
    """Sum of the losses of a cell's counts > 0; means and thetas become slopes by their logarithms. All arrays but
    counts are float64 and overwritten; large [counts, 3]."""
    value, n_large = 0.0, 0
    for k in range(len(counts)):
        x = np.int64(counts[k])  # signed, so that it can be negated
        xs[k] = x
        if x <= FEW_FACTORS:
            value += LOG_FACTORIAL[x]
        else:
            large[n_large, 0], large[n_large, 1], large[n_large, 2] = _nb_nonzero(x, log_means[k], means[k], thetas[k])
            n_large += 1
    _nb_small_counts(xs, log_means, means, thetas)
    n_large = 0
    for k in range(len(counts)):
        if xs[k] > FEW_FACTORS:
            log_means[k], means[k], thetas[k] = large[n_large, 0], large[n_large, 1], large[n_large, 2]
            n_large += 1
        value += log_means[k]
    return value


@njit(forceinline=True, fastmath=True)
def _find_largest(values: np.ndarray) -> Any:
    """The largest value, with eight comparisons at a time; NaN is skipped here, but propagates from the values."""
    a = b = c = d = e = f = g = h = values[0]
    whole = len(values) // 8 * 8
    for k in range(0, whole, 8):
        a, b, c, d = max(a, values[k]), max(b, values[k + 1]), max(c, values[k + 2]), max(d, values[k + 3])
        e, f, g, h = max(e, values[k + 4]), max(f, values[k + 5]), max(g, values[k + 6]), max(h, values[k + 7])
    for k in range(whole, len(values)):
        a = max(a, values[k])
    return max(max(a, b), max(c, d), max(e, f), max(g, h))


@njit(forceinline=True, fastmath=FASTMATH, error_model="numpy")
def prepare_softmax(row: np.ndarray) -> Any:
    """Logits become exp(logit - largest logit). Returns (largest logit, sum of the exponentials)."""
    largest, total = _find_largest(row), f32(0)
    for g in range(len(row)):
        e = exp32(row[g] - largest)
        row[g] = e
        total += e
    return largest, total


@njit(forceinline=True, fastmath=FASTMATH, error_model="numpy")
def _prepare_softplus(row: np.ndarray, proportion: np.ndarray) -> None:
    """proportion = softplus(logit); logits become d log(proportion) / d logit, which tends to 1 where both vanish."""
    for g in range(len(row)):
        x = row[g]
        t = exp32(-abs(x))
        value = f32(0.5) * (x + abs(x)) + log1p32(t)  # NaN if x is NaN, which max(x, 0) would lose
        proportion[g] = value
        row[g] = (f32(1) if x >= 0 else t) / ((f32(1) + t) * value) if x > f32(-15) else f32(1)


@njit(forceinline=True, fastmath=FASTMATH, error_model="numpy")
def _finish_softmax(proportion: np.ndarray, slope: np.ndarray, ratio: Any, weight: float) -> None:
    for g in range(len(proportion)):
        proportion[g] = (slope[g] - proportion[g] * ratio) * weight


@njit(forceinline=True, fastmath=FASTMATH, error_model="numpy")
def _finish_softplus(chain: np.ndarray, slope: np.ndarray, weight: float) -> None:
    for g in range(len(chain)):
        chain[g] *= slope[g] * weight


@njit(forceinline=True, fastmath=FASTMATH, error_model="numpy")
def _prepare_theta(log_theta: np.ndarray, theta: np.ndarray, by_theta: np.ndarray) -> None:
    for g in range(len(log_theta)):
        value = exp32(min(log_theta[g], f32(88)))
        theta[g], by_theta[g] = value, f32(1) / value


def _make_sweep_part(likelihood: Likelihood, theta_per_cell: bool) -> Callable[..., Any]:
    """The sweep over genes of one cell, whose nonzeros have a mean of zero; returns (loss, sum of the slopes)."""
    poisson, inflated = likelihood == "poisson", likelihood == "zinb"

    @njit(forceinline=True, fastmath=FASTMATH, error_model="numpy")
    def sweep_part(
        proportion: np.ndarray,
        scale: float,
        theta: np.ndarray,
        by_theta: np.ndarray,
        dropout: np.ndarray,
        slope: np.ndarray,
        grad: np.ndarray,
        terms: np.ndarray,
        weight: float,
    ) -> Any:
        loss, slopes = f32(0), f32(0)
        if poisson:
            for g in range(len(proportion)):
                slope[g] = proportion[g] * scale
            for g in range(len(proportion)):
                loss += slope[g]
            return loss, loss
        for g in range(len(proportion)):
            mu = proportion[g] * scale
            r = mu * by_theta[g]
            q = f32(1) / (f32(1) + r)
            log1p_ratio, rest = log1p_rest32(r, q)
            zero, slope_mean, slope_theta = theta[g] * log1p_ratio, mu * q, theta[g] * rest
            if inflated:
                inner = -dropout[g] - zero
                kept = sigmoid32(inner)
                zero = softplus32(-dropout[g]) - softplus32(inner)
                dropout[g] = (kept - sigmoid32(-dropout[g])) * weight
                slope_mean *= kept
                slope_theta *= kept
            terms[g] = zero
            slope[g] = slope_mean
            if theta_per_cell:
                grad[g] = slope_theta * weight
            else:
                grad[g] += slope_theta * weight
        for g in range(len(proportion)):  # a separate loop: see the module's docstring
            loss += terms[g]
            slopes += slope[g]
        return loss, slopes

    return sweep_part


# Each has a name in this module: numba caches compiled code by the values that a function encloses, and an enclosed
# compiled function differs in each process, so that the cache would never be used.
_sweep_poisson = _make_sweep_part("poisson", False)
_sweep_nb, _sweep_nb_per_cell = _make_sweep_part("nb", False), _make_sweep_part("nb", True)
_sweep_zinb, _sweep_zinb_per_cell = _make_sweep_part("zinb", False), _make_sweep_part("zinb", True)


@cache
def make_sweep(likelihood: Likelihood, softmax: bool, theta_per_cell: bool) -> Callable[..., None]:
    """The compiled sweep over cells for one combination of options.

    sweep(first, last, logits, bias, slopes, library, log_theta, theta_rows, dropout, indptr, indices, counts, weights,
    loss, by_library, grad_theta)

    For cells [first, last). logits float32 [cells, genes], to which bias [genes] is added (or [0]: nothing);
    slopes, the same array or one of the same shape, is written: d nll / d logits * weight. library float32 [cells].
    log_theta float32 [rows, genes], with theta_rows int64 [cells] for each cell's row; or, if theta_per_cell,
    [cells, genes], overwritten by its gradient. dropout: logits float32 [cells, genes], overwritten by their
    gradient (ZINB; else [0, 0]). CSR: indptr [cells + 1], indices, counts. weights float32 [cells] of the
    gradients. loss and by_library (d nll / d log library) float64 [cells] are written. grad_theta float32 [rows,
    genes] is added to.
    """
    poisson, inflated = likelihood == "poisson", likelihood == "zinb"
    inlined = Path(vector_math.__file__).read_bytes()

    @njit(nogil=True, cache=True, error_model="numpy")
    def sweep(
        first: int,
        last: int,
        logits: np.ndarray,
        bias: np.ndarray,
        slopes: np.ndarray,
        library: np.ndarray,
        log_theta: np.ndarray,
        theta_rows: np.ndarray,
        dropout: np.ndarray,
        indptr: np.ndarray,
        indices: np.ndarray,
        counts: np.ndarray,
        weights: np.ndarray,
        loss: np.ndarray,
        by_library: np.ndarray,
        grad_theta: np.ndarray,
    ) -> None:
        _ = inlined  # numba's cache depends on this file and on enclosed values, not on inlined files: enclose those
        n_genes, copied = logits.shape[1], logits.ctypes.data != slopes.ctypes.data
        slope, plus = np.empty(n_genes, np.float32), np.empty(0 if softmax else n_genes, np.float32)
        n_thetas, known = 0 if poisson else n_genes, -1
        theta, by_theta = np.empty(n_thetas, np.float32), np.empty(n_thetas, np.float32)
        no_dropout, terms = np.empty(0, np.float32), np.empty(min(n_genes, PART), np.float32)
        longest = 0
        for cell in range(first, last):
            longest = max(longest, indptr[cell + 1] - indptr[cell])
        log_means, means, pis = np.empty(longest), np.empty(longest), np.empty(longest, np.float32)
        thetas, xs, large = np.empty(longest), np.empty(longest), np.empty((longest, 3))
        own = np.empty(longest, np.float32)  # proportions of the nonzeros
        for cell in range(first, last):
            row, begin, n = slopes[cell], indptr[cell], indptr[cell + 1] - indptr[cell]
            genes = indices[begin : begin + n]
            theta_row = cell if theta_per_cell else theta_rows[cell]
            if not poisson and (theta_per_cell or theta_row != known):
                known = theta_row
                _prepare_theta(log_theta[theta_row], theta, by_theta)
            if copied:  # then the sweep works in place, and the compiler need not check whether arrays overlap
                for g in range(n_genes):  # row[:] = would compile numba's sentence about shapes that differ: 3 s
                    row[g] = logits[cell, g]
            for g in range(len(bias)):
                row[g] += bias[g]
            for k in range(n):
                log_means[k] = row[genes[k]]
            weight, cell_library = weights[cell], library[cell]
            log_scale = math.log(cell_library) if n else 0.0
            scale, total, proportion = cell_library, f32(1), row
            if softmax:
                largest, total = prepare_softmax(row)
                log_scale -= largest + math.log(total)
                scale = cell_library / total
            else:
                proportion = plus
                _prepare_softplus(row, plus)
            for k in range(n):
                if not softmax and log_means[k] > -15:
                    log_means[k] = math.log(max(log_means[k], 0.0) + math.log1p(math.exp(-abs(log_means[k]))))
                log_means[k] += log_scale
                own[k] = proportion[genes[k]]
                means[k] = np.float64(own[k]) * scale
                if counts[begin + k] > MOST_FACTORS or means[k] > MOST_FACTORS:  # float32 is not exact enough
                    means[k] = math.exp(log_means[k])
                proportion[genes[k]] = 0  # so that the terms of a zero vanish
            pi_row = dropout[cell] if inflated else no_dropout
            if inflated:
                for k in range(n):
                    pis[k] = pi_row[genes[k]]
            grad_row = log_theta[cell] if theta_per_cell else grad_theta[theta_row]
            value, all_slopes = 0.0, 0.0
            for start in range(0, n_genes, PART):
                part = slice(start, min(start + PART, n_genes))
                arguments = (
                    proportion[part], scale, theta[part], by_theta[part], pi_row[part], slope[part], grad_row[part],
                    terms, weight,
                )  # fmt: skip
                if poisson:
                    of_part, slopes_of_part = _sweep_poisson(*arguments)
                elif inflated and theta_per_cell:
                    of_part, slopes_of_part = _sweep_zinb_per_cell(*arguments)
                elif inflated:
                    of_part, slopes_of_part = _sweep_zinb(*arguments)
                elif theta_per_cell:
                    of_part, slopes_of_part = _sweep_nb_per_cell(*arguments)
                else:
                    of_part, slopes_of_part = _sweep_nb(*arguments)
                value += of_part
                all_slopes += slopes_of_part
            own_counts = counts[begin : begin + n]
            if not poisson:
                for k in range(n):
                    thetas[k] = theta[genes[k]]
                value += _nb_nonzeros(own_counts, log_means[:n], means[:n], thetas[:n], xs[:n], large)
            for k in range(n):
                g = genes[k]
                if poisson:
                    x = np.int64(own_counts[k])  # signed, so that it can be negated
                    log_factorial = LOG_FACTORIAL[x] if x <= MOST_FACTORS else math.lgamma(x + 1.0)
                    value += means[k] - x * log_means[k] + log_factorial
                    slope[g] = means[k] - x
                else:
                    slope[g] = means[k]
                    grad_row[g] += thetas[k] * weight
                all_slopes += slope[g]
                proportion[g] = own[k]
                if inflated:
                    pi = np.float64(pis[k])
                    value += max(pi, 0.0) + math.log1p(math.exp(-abs(pi)))
                    pi_row[g] = weight / (1 + math.exp(-pi))
            if softmax:
                _finish_softmax(row, slope, f32(all_slopes / total), weight)
            else:
                _finish_softplus(row, slope, weight)
            loss[cell], by_library[cell] = value, all_slopes

    return sweep
