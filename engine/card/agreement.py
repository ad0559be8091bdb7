"""How well a vector of drawn counts agrees with that of real ones: the four figures of the hub's card."""

from typing import NamedTuple

import numpy as np
from scipy import stats


class Agreement(NamedTuple):
    """mae: mean absolute error; pearson, spearman: correlations; r2: see `compare`. NaN where undefined."""

    mae: float
    pearson: float
    spearman: float
    r2: float


def compare(drawn: np.ndarray, real: np.ndarray) -> Agreement:
    """The agreement of two vectors of finite numbers [n].

    r2 is 1 - sum (drawn - real)**2 / sum (drawn - mean of drawn)**2: the drawn values stand where the measured ones
    are expected, as on the hub (scikit-learn's `r2_score(drawn, real)`), so that the figures can be compared.
    Undefined are all of them without values, and the correlations and r2 where a vector is constant.
    """
    drawn, real = np.asarray(drawn, float), np.asarray(real, float)
    if not len(drawn):
        return Agreement(*[np.nan] * 4)
    squares = ((drawn - real) ** 2).sum()
    spread = ((drawn - drawn.mean()) ** 2).sum()
    return Agreement(
        float(np.abs(drawn - real).mean()),
        _correlate(drawn, real),
        _correlate(stats.rankdata(drawn), stats.rankdata(real)),
        float(1 - squares / spread) if np.ptp(drawn) > 0 else np.nan,
    )


def _correlate(a: np.ndarray, b: np.ndarray) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return np.nan
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip((a / np.linalg.norm(a)) @ (b / np.linalg.norm(b)), -1, 1))
