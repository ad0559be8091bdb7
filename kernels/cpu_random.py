"""The random numbers of counter_random.py on a CPU, compiled: the same words for the same counter and seed."""

from typing import Any

import numpy as np
from numba import njit

from atlasvi.kernels.counter_random import KEY_STEPS, MULTIPLIERS, ROUNDS, WORD

u64 = np.uint64
M0, M1, K0, K1, W = (u64(value) for value in (*MULTIPLIERS, *KEY_STEPS, WORD))
HALF_WORD = u64(32)


@njit(forceinline=True, error_model="numpy")
def philox(a: Any, b: Any, c: Any, d: Any, key0: Any, key1: Any) -> Any:
    """See counter_random.philox; all arguments uint64 that hold words of 32 bits."""
    a, c, key0, key1 = a & W, c & W, key0 & W, key1 & W  # so that the compiler knows, and multiplies 32 bits
    for _ in range(ROUNDS):
        first, second = a * M0, c * M1
        a, b, c, d = (second >> HALF_WORD) ^ b ^ key0, second & W, (first >> HALF_WORD) ^ d ^ key1, first & W
        key0, key1 = (key0 + K0) & W, (key1 + K1) & W
    return a, b, c, d


@njit(forceinline=True, error_model="numpy")
def to_uniform(high: Any, low: Any) -> Any:
    """float64 in (0, 1] from two words of 32 bits."""
    return np.float64(np.int64(high)) * 2.0**-32 + (np.float64(np.int64(low)) + 0.5) * 2.0**-64


@njit(nogil=True, error_model="numpy")
def draw_block(a: Any, b: Any, c: Any, d: Any, key0: Any, key1: Any) -> Any:
    """`philox`, compiled once for the places where it is not in a loop of vector code."""
    return philox(a, b, c, d, key0, key1)
