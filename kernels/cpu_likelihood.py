"""Likelihood of sparse counts from decoder logits on a CPU: value and gradients, cell by cell, in place.

Parametrisation of Lopez et al. 2018 (Nature Methods 15:1053): mean mu, inverse dispersion theta, variance
mu + mu**2 / theta; exact, no epsilon inside the logarithms. In nats, with r = mu / theta:

    NB       x = 0: theta log1p(r)
             x > 0: theta log1p(r) + x log((theta + mu) / mu) - log(theta (theta + 1) ... (theta + x - 1)) + log(x!)
    ZINB     x = 0: softplus(-pi) - softplus(-pi - theta log1p(r)), pi the logit of a dropout
             x > 0: softplus(pi) + NB
    Poisson  mu - x log(mu) + log(x!)

The zeros, nearly all elements, are swept by vector code in float32; nonzeros are taken out of the sweep (their mean set
to zero, where its terms vanish) and done one by one in float64: where counts are large, what is left is the small
difference of large terms. Slopes are by log(mu); through the softmax they become slope - proportion * sum(slopes).
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numba import njit

from atlasvi.kernels.reference import Likelihood
from atlasvi.kernels.vector_math import FASTMATH, exp32, f32, log1p32

MOST_FACTORS = 16  # of theta (theta + 1) ...: up to here their product fits float64 for every theta
DIRECT_SUM = 64
PART = 4096  # genes: float32 sums are kept short, and rows of a part in the nearest cache
LOG_FACTORIAL = np.array([math.lgamma(x + 1) for x in range(MOST_FACTORS + 1)])


@njit(inline="always", fastmath=FASTMATH, error_model="numpy")
def softplus32(x: Any) -> Any:
    """log(1 + exp(x))."""
    return max(x, f32(0)) + log1p32(exp32(-abs(x)))


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
def _nb_nonzero(x: int, log_mean: float, mean: float, theta: float) -> tuple[float, float, float]:
    """(nll, d nll / d log mean, d nll / d log theta) of one count x > 0."""
    total = theta + mean
    log1p_ratio = math.log1p(mean / theta)
    if x <= MOST_FACTORS:
        product, harmonic = 1.0, 0.0
        for j in range(x):
            product *= (theta + j) / total
            harmonic += 1 / (theta + j)
        rising, log_factorial = math.log(product), LOG_FACTORIAL[x]  # log of (theta ... (theta + x - 1)) / total**x
    else:
        log_factorial = math.lgamma(x + 1.0)
        if theta < 1e3:
            rising = math.lgamma(x + theta) - math.lgamma(theta) - x * math.log(total)
            harmonic = _digamma(x + theta) - _digamma(theta)
        else:  # the two lgammas agree in most digits: Stirling's series, its large terms subtracted by hand
            rising = (x + theta - 0.5) * math.log1p(x / theta) - x - x * log1p_ratio
            rising += _stirling_tail(x + theta) - _stirling_tail(theta)
            harmonic = math.log1p(x / theta) + 0.5 * x / (theta * (x + theta))
            harmonic -= (1 / (x + theta) ** 2 - 1 / theta**2) / 12
        if x <= DIRECT_SUM:
            harmonic = 0.0
            for j in range(x):
                harmonic += 1 / (theta + j)
    loss = theta * log1p_ratio + log_factorial - rising - x * log_mean
    return loss, (mean - x) * theta / total, theta * (log1p_ratio + (x - mean) / total - harmonic)


@njit(nogil=True, cache=True, fastmath=True)
def _find_largest(values: np.ndarray) -> Any:
    """The largest value, found in 16 lanes; NaN are passed over, and come through where the values are used."""
    lanes, whole = np.full(16, values[0], np.float32), len(values) // 16 * 16
    for start in range(0, whole, 16):
        some = values[start : start + 16]
        for k in range(16):
            lanes[k] = some[k] if some[k] > lanes[k] else lanes[k]
    largest = lanes[0]
    for k in range(16):
        largest = max(largest, lanes[k])
    for k in range(whole, len(values)):
        largest = max(largest, values[k])
    return largest


@cache
def make_sweep(likelihood: Likelihood, softmax: bool, theta_per_cell: bool) -> Callable[..., None]:
    """The compiled sweep over cells for one combination of options.

    sweep(first, last, logits, library, log_theta, theta_rows, dropout, indptr, indices, counts, weights, loss,
    grad_theta)

    Cells [first, last) of: logits float32 [cells, genes], overwritten by d nll / d logits * weight; library float32
    [cells]; log_theta float32 [rows, genes] with theta_rows int64 [cells] saying which row is a cell's, or, if
    theta_per_cell, [cells, genes], overwritten by its gradient; dropout logits float32 [cells, genes], overwritten by
    theirs (ZINB; else [0, 0]); CSR indptr [cells + 1], indices, counts; weights float32 [cells] of the gradients; loss
    float64 [cells], written; grad_theta float32 [rows, genes], added to.
    """
    poisson, inflated = likelihood == "poisson", likelihood == "zinb"

    @njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
    def prepare_means(logits: np.ndarray, library: float, mean: np.ndarray) -> Any:
        """Means of a cell; logits become exp(logit - largest), or d log(mean) / d logit. Returns (largest, sum)."""
        if not softmax:
            for g in range(len(logits)):
                x = logits[g]
                t = exp32(-abs(x))
                value = max(x, f32(0)) + log1p32(t)
                mean[g] = value * library
                # sigmoid / softplus, which goes to 1 where both vanish
                logits[g] = (f32(1) if x >= 0 else t) / ((f32(1) + t) * value) if x > f32(-15) else f32(1)
            return f32(0), f32(1)
        largest = _find_largest(logits)
        total = f32(0)
        for g in range(len(logits)):
            e = exp32(logits[g] - largest)
            logits[g] = e
            total += e
        scale = library / total
        for g in range(len(logits)):
            mean[g] = logits[g] * scale
        return largest, total

    @njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
    def sweep_part(
        mean: np.ndarray, theta: np.ndarray, dropout: np.ndarray, slope: np.ndarray, grad: np.ndarray, weight: float
    ) -> Any:
        part: Any = f32(0)
        if poisson:
            for g in range(len(mean)):
                part += mean[g]
                slope[g] = mean[g]
        else:
            for g in range(len(mean)):
                mu = mean[g]
                r = mu / theta[g]
                log1p_ratio, q = log1p32(r), f32(1) / (f32(1) + r)
                series = f32(3 / 4) - r * (f32(4 / 5) - r * f32(5 / 6))
                series = r * r * (f32(1 / 2) - r * (f32(2 / 3) - r * series))
                by_theta = theta[g] * (series if r < f32(0.03) else log1p_ratio - r * q)
                share = f32(1)
                if inflated:
                    pi = dropout[g]
                    inner = -pi - theta[g] * log1p_ratio
                    share = sigmoid32(inner)
                    part += softplus32(-pi) - softplus32(inner)
                    dropout[g] = (share - sigmoid32(-pi)) * weight
                else:
                    part += theta[g] * log1p_ratio
                slope[g] = share * mu * q
                if theta_per_cell:
                    grad[g] = share * by_theta * weight
                else:
                    grad[g] += share * by_theta * weight
        return part

    @njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
    def sweep_zeros(
        mean: np.ndarray, theta: np.ndarray, dropout: np.ndarray, slope: np.ndarray, grad: np.ndarray, weight: float
    ) -> Any:
        """Loss of all genes as if their counts were zero; slope is written, grad added to (written, if per cell)."""
        loss: Any = 0.0
        for start in range(0, len(mean), PART):
            loss += sweep_part(
                mean[start : start + PART],
                theta[start : start + PART],
                dropout[start : start + PART],
                slope[start : start + PART],
                grad[start : start + PART],
                weight,
            )
        return loss

    @njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
    def finish_gradient(logits: np.ndarray, slope: np.ndarray, total: float, weight: float) -> None:
        if softmax:
            slopes = f32(0)
            for g in range(len(logits)):
                slopes += slope[g]
            ratio = slopes / total
            for g in range(len(logits)):
                logits[g] = (slope[g] - logits[g] * ratio) * weight
        else:
            for g in range(len(logits)):
                logits[g] = slope[g] * logits[g] * weight

    @njit(nogil=True, cache=True, error_model="numpy")
    def sweep(
        first: int,
        last: int,
        logits: np.ndarray,
        library: np.ndarray,
        log_theta: np.ndarray,
        theta_rows: np.ndarray,
        dropout: np.ndarray,
        indptr: np.ndarray,
        indices: np.ndarray,
        counts: np.ndarray,
        weights: np.ndarray,
        loss: np.ndarray,
        grad_theta: np.ndarray,
    ) -> None:
        n_genes = logits.shape[1]
        mean, slope = np.empty(n_genes, np.float32), np.empty(n_genes, np.float32)
        theta, known = np.empty(0 if poisson else n_genes, np.float32), -1
        no_dropout = np.empty(0, np.float32)
        longest = 0
        for cell in range(first, last):
            longest = max(longest, indptr[cell + 1] - indptr[cell])
        log_means, means, pis = np.empty(longest), np.empty(longest), np.empty(longest, np.float32)
        for cell in range(first, last):
            row, begin, n = logits[cell], indptr[cell], indptr[cell + 1] - indptr[cell]
            genes = indices[begin : begin + n]
            theta_row = cell if theta_per_cell else theta_rows[cell]
            if not poisson and (theta_per_cell or theta_row != known):
                known = theta_row
                for g in range(n_genes):
                    theta[g] = np.exp(log_theta[theta_row, g])
            for k in range(n):
                log_means[k] = row[genes[k]]
            weight, cell_library = weights[cell], library[cell]
            largest, total = prepare_means(row, cell_library, mean)
            log_scale = math.log(cell_library) if n else 0.0
            if softmax:
                log_scale -= largest + math.log(total)
            for k in range(n):
                if not softmax and log_means[k] > -15:
                    log_means[k] = math.log(max(log_means[k], 0.0) + math.log1p(math.exp(-abs(log_means[k]))))
                log_means[k] += log_scale
                means[k] = math.exp(log_means[k])
                mean[genes[k]] = 0
            pi_row = dropout[cell] if inflated else no_dropout
            if inflated:
                for k in range(n):
                    pis[k] = pi_row[genes[k]]
            grad_row = log_theta[cell] if theta_per_cell else grad_theta[theta_row]
            value = sweep_zeros(mean, theta, pi_row, slope, grad_row, weight)
            for k in range(n):
                g, x = genes[k], counts[begin + k]
                if poisson:
                    value += means[k] - x * log_means[k] + math.lgamma(x + 1.0)
                    slope[g] = means[k] - x
                    continue
                nll, by_mean, by_theta = _nb_nonzero(x, log_means[k], means[k], np.float64(theta[g]))
                value += nll
                slope[g] = by_mean
                grad_row[g] += by_theta * weight
                if inflated:
                    pi = np.float64(pis[k])
                    value += max(pi, 0.0) + math.log1p(math.exp(-abs(pi)))
                    pi_row[g] = weight / (1 + math.exp(-pi))
            finish_gradient(row, slope, total, weight)
            loss[cell] = value

    return sweep


_POOLS: dict[int, ThreadPoolExecutor] = {}


def run_on_threads(function: Callable[[int, int, int], None], n: int, n_threads: int) -> None:
    """Call function(thread, start, stop) for even shares of range(n), on that many threads; waits for all."""
    n_threads = max(1, min(n_threads, n))
    edges = [n * k // n_threads for k in range(n_threads + 1)]
    if n_threads == 1:
        function(0, 0, n)
        return
    if n_threads not in _POOLS:
        _POOLS[n_threads] = ThreadPoolExecutor(n_threads - 1, thread_name_prefix="atlasvi-kernel")
    pool = _POOLS[n_threads]
    others = [pool.submit(function, k, edges[k], edges[k + 1]) for k in range(1, n_threads)]
    try:
        function(0, edges[0], edges[1])
    finally:
        for other in others:
            other.result()
