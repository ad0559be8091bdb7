"""exp and log1p of float32, exp and log of float64, as vector code; numba itself calls a library for each element.

Polynomials of Cephes (netlib.org/cephes, expf.c and logf.c), branchless; relative error below 2e-7. Functions are
inlined into the loops that call them. Those loops need `error_model="numpy"`, since a check for division by zero would
prevent vector code, and FASTMATH, which allows sums to be split into lanes.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

# not "ninf" and not "nnan": infinities and NaN must propagate
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
f32, i32 = np.float32, np.int32
ROUNDING = 1.5 * 2.0**52  # a sum with it is rounded to a whole number, which its low bits hold


def _make_bitcast(given: Any, wanted: Any, wanted_ir: ir.Type) -> Any:
    """A function that returns the same bits as another type of number."""

    def build(typing_context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], wanted_ir)

        return wanted(given), generate

    return intrinsic(build)


to_bits: Any = _make_bitcast(types.float32, types.int32, ir.IntType(32))
from_bits: Any = _make_bitcast(types.int32, types.float32, ir.FloatType())
to_bits64: Any = _make_bitcast(types.float64, types.int64, ir.IntType(64))
from_bits64: Any = _make_bitcast(types.int64, types.float64, ir.DoubleType())


@njit(inline="always", fastmath=FASTMATH, error_model="numpy")
def exp32(x: Any) -> Any:
    """exp(x) for x <= 88; 0 below -87.3; NaN if x is NaN."""
    n = np.floor(max(x, f32(-87.3)) * f32(1.44269504) + f32(0.5))
    r = x - n * LN2_HIGH - n * LN2_LOW
    p = f32(1.9875691500e-4)
    p = p * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    scale = from_bits(i32(i32(i32(n) + i32(127)) << i32(23)))
    return f32(0) if x < f32(-87.3) else (p * r * r + r + f32(1)) * scale


@njit(inline="always", fastmath=FASTMATH, error_model="numpy")
def log1p32(x: Any) -> Any:
    """log(1 + x) for x >= 0, also where 1 + x rounds to 1: below sqrt(2) - 1, x itself is the series' argument."""
    small = not x >= f32(0.41421354)  # true for NaN, which propagates through the series
    bits = to_bits(f32(1) + x)
    exponent = i32(0) if small else i32(i32(bits - i32(0x3F3504F3)) >> i32(23))
    f = x if small else from_bits(i32(bits - i32(exponent << i32(23)))) - f32(1)
    return _log_of(f, f32(exponent))


@njit(inline="always", fastmath=FASTMATH, error_model="numpy")
def log1p_rest32(x: Any, q: Any) -> Any:
    """(log(1 + x), log(1 + x) - x q) for x >= 0 and q = 1 / (1 + x), the difference as exact as the terms."""
    small = not x >= f32(0.41421354)  # true for NaN, which propagates through the series
    bits = to_bits(f32(1) + x)
    exponent = i32(0) if small else i32(i32(bits - i32(0x3F3504F3)) >> i32(23))
    f = x if small else from_bits(i32(bits - i32(exponent << i32(23)))) - f32(1)
    z = f * f
    fp = f * _series(f)
    log1p = f + (z * fp + f32(exponent) * LN2_LOW - f32(0.5) * z) + f32(exponent) * LN2_HIGH
    return log1p, z * (fp + (q - f32(0.5))) if small else log1p - x * q  # x - x q = x x q


@njit(inline="always", fastmath=FASTMATH, error_model="numpy")
def _log_of(f: Any, exponent: Any) -> Any:
    """log((1 + f) 2**exponent) for 1 + f in [sqrt(1/2), sqrt(2)]."""
    z = f * f
    return f + (f * z * _series(f) + exponent * LN2_LOW - f32(0.5) * z) + exponent * LN2_HIGH


@njit(inline="always", fastmath=FASTMATH, error_model="numpy")
def _series(f: Any) -> Any:
    """(log(1 + f) - f + f f / 2) / f**3."""
    p = f32(7.0376836292e-2)
    p = p * f + f32(-1.1514610310e-1)
    p = p * f + f32(1.1676998740e-1)
    p = p * f + f32(-1.2420140846e-1)
    p = p * f + f32(1.4249322787e-1)
    p = p * f + f32(-1.6668057665e-1)
    p = p * f + f32(2.0000714765e-1)
    p = p * f + f32(-2.4999993993e-1)
    return p * f + f32(3.3333331174e-1)


@njit(inline="always", error_model="numpy")
def log64(x: Any) -> Any:
    """log(x) of float64 x >= 1, exact to the last digits in loops without fastmath (fdlibm, e_log.c); not valid for
    NaN and infinity."""
    bits = to_bits64(x) + (0x3FF0000000000000 - 0x3FE6A09E00000000)
    f = from_bits64((bits & 0x000FFFFFFFFFFFFF) + 0x3FE6A09E00000000) - 1.0
    k = from_bits64((bits >> 52) | 0x4330000000000000) - (4503599627370496.0 + 1023.0)  # an integer below 2**52
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    odd = w * (0.3999999999940941908 + w * (0.2222219843214978396 + w * 0.1531383769920937332))
    even = z * (
        0.6666666666666735130 + w * (0.2857142874366239149 + w * (0.1818357216161805012 + w * 0.1479819860511658591))
    )
    half = 0.5 * f * f
    return k * 6.93147180369123816490e-01 - ((half - (s * (half + odd + even) + k * 1.90821492927058770002e-10)) - f)


@njit(inline="always", error_model="numpy")
def exp64(x: Any) -> Any:
    """exp(x) of float64 for |x| <= 700, as vector code: exp(n log 2) times a Taylor series of degree 13."""
    shifted = x * 1.4426950408889634 + ROUNDING
    n = shifted - ROUNDING
    r = x - n * 6.93147180369123816490e-01 - n * 1.90821492927058770002e-10
    p = 1 / 6227020800.0
    p = p * r + 1 / 479001600.0
    p = p * r + 1 / 39916800.0
    p = p * r + 1 / 3628800.0
    p = p * r + 1 / 362880.0
    p = p * r + 1 / 40320.0
    p = p * r + 1 / 5040.0
    p = p * r + 1 / 720.0
    p = p * r + 1 / 120.0
    p = p * r + 1 / 24.0
    p = p * r + 1 / 6.0
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    return p * from_bits64((to_bits64(shifted) + 1023) << 52)
