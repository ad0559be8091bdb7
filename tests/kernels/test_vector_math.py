import math

import numpy as np
import pytest
from numba import njit

from atlasvi.kernels.vector_math import FASTMATH, exp32, log1p32, log64


def compile_loop(function, fastmath=FASTMATH):
    @njit(fastmath=fastmath, error_model="numpy")
    def loop(values, out):
        for k in range(len(values)):
            out[k] = function(values[k])

    return loop


@pytest.mark.parametrize(
    ("function", "exact", "values"),
    [
        (exp32, np.exp, np.linspace(-87, 88, 100_001)),
        (log1p32, np.log1p, np.exp(np.linspace(-80, 80, 100_001))),
    ],
)
def test_it_is_right_to_float32(function, exact, values):
    values = values.astype(np.float32)
    out = np.empty_like(values)
    compile_loop(function)(values, out)
    expected = exact(values.astype(np.float64))
    assert (np.abs(out - expected) <= 4e-7 * np.maximum(np.abs(expected), 1e-3 if exact is np.log else 0)).all()


def test_exp_is_zero_far_down_and_nan_of_nan():
    values = np.array([-1e4, -90, math.nan, 0], np.float32)
    out = np.empty_like(values)
    compile_loop(exp32)(values, out)
    assert out[:2].tolist() == [0, 0]
    assert math.isnan(out[2])
    assert out[3] == 1


def test_log_of_float64_is_right_to_its_last_digits():
    values = np.concatenate([np.exp(np.linspace(0, 300, 100_001)), 1 + np.exp(np.linspace(-36, 0, 100_001)), [1.0]])
    out = np.empty_like(values)
    compile_loop(log64, fastmath=False)(values, out)
    exact = np.log(values.astype(np.longdouble))
    assert (np.abs(out - exact) <= 4e-16 * np.maximum(exact, 1e-30)).all()
