"""Figures over several draws of the counts, each with its standard error over draws."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A figure and its standard error over draws, which is NaN for a single draw."""

    value: float
    error: float


def mean_of_draws(values: Sequence[float]) -> Estimate:
    """The mean of a figure that was computed for each draw. Draws in which it is undefined (NaN) are left out."""
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    if not len(known):
        return Estimate(np.nan, np.nan)
    error = known.std(ddof=1) / np.sqrt(len(known)) if len(known) > 1 else np.nan
    return Estimate(float(known.mean()), float(error))


def jackknife(figures: Callable[[np.ndarray], Sequence[float]], draws: np.ndarray) -> list[Estimate]:
    """Figures of the mean over draws, with their standard errors by the jackknife: each draw is left out in turn.

    figures  of a vector [n], several at once
    draws    [draws, n]; NaN is left out of the mean (see `mean_known`)
    """
    value, n = figures(mean_known(draws)), len(draws)
    if n < 2:
        return [Estimate(float(each), np.nan) for each in value]
    without = np.array([figures(mean_known(np.delete(draws, k, axis=0))) for k in range(n)])
    errors = np.sqrt((n - 1) / n * ((without - without.mean(0)) ** 2).sum(0))
    return [Estimate(float(each), float(error)) for each, error in zip(value, errors)]


def mean_known(draws: np.ndarray) -> np.ndarray:
    """Means [n] over draws [draws, n], float64; a draw that is NaN is left out, and where all are NaN the mean is 0."""
    known = ~np.isnan(draws)
    sums = np.where(known, draws, 0).sum(0, dtype=np.float64)
    return sums / np.maximum(known.sum(0), 1)
