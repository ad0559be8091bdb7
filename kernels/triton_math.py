"""Terms of the likelihoods for Triton kernels, elementwise; the formulas are those of cpu_likelihood.py.

Built on functions of every Triton and its interpreter: exp2 and rsqrt (one instruction each, 2 ulp, zero instead of
denormal results) and log. float32, except for counts above MOST_FACTORS, whose large terms nearly cancel and which are
computed in float64. Slopes are derivatives by log mean and log theta.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
HALF_LOG_2PI = tl.constexpr(0.9189385332046727)
MOST_FACTORS = tl.constexpr(8)  # of theta (theta + 1) ...: two products of four stay above the smallest float32


@triton.jit
def reciprocal(x):
    """1 / x for x > 0 in two instructions; a division takes seven."""
    root = tl.math.rsqrt(x)
    return root * root


@triton.jit
def log1p32(r):
    """(log(1 + r), log(1 + r) - r / (1 + r)) for r >= 0, exact also for small r.

    1 + r = 2**n (1 + f), 1 + f in [sqrt(1/2), sqrt(2)], and log(1 + f) = 2 artanh(f / (2 + f)).
    """
    bits = (1.0 + r).to(tl.int32, bitcast=True)
    n = (bits - 0x3F3504F3) >> 23
    scaled = (n - 1).to(tl.uint32, bitcast=True) < 128  # false where 1 + r needs no scaling, and for NaN, which stays
    f = tl.where(scaled, (bits - (n << 23)).to(tl.float32, bitcast=True) - 1.0, r)
    s = f * reciprocal(2.0 + f)
    t = s * s
    tail = t * (1 / 3 + t * (1 / 5 + t * (1 / 7)))
    logarithm = n.to(tl.float32) * LN2 + (2.0 * s + 2.0 * s * tail)
    fraction = r * reciprocal(1.0 + r)
    excess = tl.where(scaled, logarithm - fraction, t * (2.0 - fraction) + 2.0 * s * tail)
    return logarithm, excess


@triton.jit
def softplus(x):
    """log(1 + exp(x))."""
    logarithm, _ = log1p32(tl.exp2(-tl.abs(x) * LOG2E))
    return tl.maximum(x, 0.0) + logarithm


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    t = tl.exp2(-tl.abs(x) * LOG2E)
    return tl.where(x >= 0, 1.0, t) * reciprocal(1.0 + t)


@triton.jit
def softplus_slope(x):
    """d log softplus(x) / dx, which tends to 1 where both vanish."""
    return tl.where(x > -15.0, sigmoid(x) / softplus(x), 1.0)


@triton.jit
def zero_terms(mean, theta, inverse_theta, dropout, LIKELIHOOD: tl.constexpr):
    """(nll, slope by log mean, by log theta, by the logit of a dropout) of counts of zero; all zero if mean is zero."""
    if LIKELIHOOD == "poisson":
        return mean, mean, mean, mean
    else:
        r = mean * inverse_theta
        logarithm, excess = log1p32(r)
        loss = theta * logarithm
        slope = mean * reciprocal(1.0 + r)
        by_theta = theta * excess
        if LIKELIHOOD == "zinb":
            inner = -dropout - loss
            kept = sigmoid(inner)
            loss = softplus(-dropout) - softplus(inner)
            return loss, slope * kept, by_theta * kept, kept - sigmoid(-dropout)
        else:
            return loss, slope, by_theta, slope


@triton.jit
def small_nonzero_terms(x, log_mean, mean, theta, LIKELIHOOD: tl.constexpr):
    """(nll, slope by log mean, by log theta) of counts from 1 to MOST_FACTORS, without dropouts; float32.

    nll = theta log1p(mean / theta) - log prod_j (theta + j) / ((theta + mean) (j + 1)) - x log(mean), j < x
    """
    if LIKELIHOOD == "poisson":
        factorial = tl.full(x.shape, 1.0, tl.float32)
        for j in tl.static_range(1, MOST_FACTORS):
            factorial = tl.where(x > j, factorial * (j + 1), factorial)
        return mean - x * log_mean + tl.log(factorial), mean - x, mean
    else:
        inverse = reciprocal(theta + mean)
        first = tl.full(x.shape, 1.0, tl.float32)
        second = tl.full(x.shape, 1.0, tl.float32)
        rising = tl.zeros(x.shape, tl.float32)
        for j in tl.static_range(0, MOST_FACTORS):
            factor = tl.where(x > j, (theta + j) * (inverse * (1 / (j + 1))), 1.0)
            if j < MOST_FACTORS // 2:
                first *= factor
            else:
                second *= factor
            rising += tl.where(x > j, (j - mean) * reciprocal(theta + j), 0.0)
        logarithm, excess = log1p32(mean * reciprocal(theta))
        q = theta * inverse
        loss = theta * logarithm - tl.log(first) - tl.log(second) - x * log_mean
        return loss, (mean - x) * q, theta * excess + q * rising


@triton.jit
def log1p64(r):
    """log(1 + r), r > -1, exact also for small r: the rounding error of 1 + r is added back."""
    u = 1.0 + r
    return tl.log(u) + (r - (u - 1.0)) / u


@triton.jit
def stirling_tail(t):
    """lgamma(t) - (t - 1/2) log(t) + t - log(2 pi) / 2 for t >= 8, to twelve digits."""
    s = 1.0 / (t * t)
    return (1 / 12 - s * (1 / 360 - s * (1 / 1260 - s * (1 / 1680)))) / t


@triton.jit
def digamma_tail(t):
    """digamma(t) - log(t) + 1 / (2 t) for t >= 8."""
    s = 1.0 / (t * t)
    return -s * (1 / 12 - s * (1 / 120 - s * (1 / 252 - s * (1 / 240))))


@triton.jit
def large_nonzero_terms(x, log_mean, theta, LIKELIHOOD: tl.constexpr):
    """As small_nonzero_terms, for counts above MOST_FACTORS, all in float64.

    lgamma(x + theta) - lgamma(theta) by Stirling's series at n = x + theta and at m = theta + 8, reached by
    lgamma(theta) = lgamma(m) - log(theta (theta + 1) ... (theta + 7)). Terms are combined before logarithms are taken:
    for a theta of 1e8 they would otherwise cancel in all digits.
    """
    mean = tl.exp(log_mean)
    log_factorial = (x + 0.5) * tl.log(x) - x + stirling_tail(x)  # minus log(2 pi) / 2
    if LIKELIHOOD == "poisson":
        return mean - x * log_mean + log_factorial + HALF_LOG_2PI, mean - x, mean
    else:
        n, m, total = x + theta, theta + 8.0, theta + mean
        product = theta / m
        harmonic = 1.0 / theta
        for j in tl.static_range(1, 8):
            product *= (theta + j) / m
            harmonic += 1.0 / (theta + j)
        log1p_ratio, log_growth = log1p64(mean / theta), log1p64((x - 8.0) / m)  # log(n / m)
        loss = theta * log1p_ratio + x * tl.log(total / m) - tl.log(product) - x * log_mean
        loss += log_factorial + HALF_LOG_2PI - (n - 0.5) * log_growth + (x - 8.0) - stirling_tail(n) + stirling_tail(m)
        harmonic += log_growth + 0.5 * (x - 8.0) / (n * m) + digamma_tail(n) - digamma_tail(m)
        return loss, (mean - x) * theta / total, theta * (log1p_ratio + (x - mean) / total - harmonic)
