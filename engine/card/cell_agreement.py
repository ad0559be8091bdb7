"""Agreement over cells, and a grid of the scatter, from values that are read in slices: memory is that of a slice.

Values of a cell are those of the real counts and of each draw; what is compared is the mean over draws with the real
value. Up to EXACT_CELLS cells everything is computed in memory (`draw_errors.jackknife`). Of more cells, sums are added
up over slices, and ranks for Spearman's correlation are those of values rounded to KEPT_BITS bits after the first:
cells whose values differ by less than one in 8,000 are tied, which changes it by less than 2e-6.
"""

from collections.abc import Callable, Iterator

import numpy as np

from atlasvi.engine.card.agreement import Agreement, compare
from atlasvi.engine.card.draw_errors import Estimate, jackknife, mean_known, mean_of_draws
from atlasvi.engine.card.model_card import Density, Figures

EXACT_CELLS = 2**17
KEPT_BITS = 13
EXPONENTS = range(-16, 32)  # of 2: smaller values are tied with 0, and there are no larger ones
N_KEYS = len(EXPONENTS) << KEPT_BITS
N_BOXES = 64  # of a grid, on each axis

Slices = Callable[[], Iterator[np.ndarray]]
"""Starts a pass over the cells: float32 [1 + draws, cells] of each slice, real values first, NaN where undefined."""


def agree_over_cells(slices: Slices, n_cells: int) -> Figures:
    """`Agreement` by name, with the standard errors of the jackknife over draws."""
    if n_cells <= EXACT_CELLS:
        values = list(slices())
        whole = np.concatenate(values, axis=1) if values else np.empty((2, 0), np.float32)
        real = np.nan_to_num(whole[0].astype(np.float64))
        return dict(zip(Agreement._fields, jackknife(lambda mean: compare(mean, real), whole[1:])))
    found = np.array(_stream_agreements(slices))
    if len(found) == 1:
        return {name: Estimate(float(value), np.nan) for name, value in zip(Agreement._fields, found[0])}
    n = len(found) - 1
    errors = np.sqrt((n - 1) / n * ((found[1:] - found[1:].mean(0)) ** 2).sum(0))
    return {
        name: Estimate(float(value), float(error)) for name, value, error in zip(Agreement._fields, found[0], errors)
    }


def agree_among_draws(slices: Slices) -> Estimate:
    """The squared Pearson correlation of one draw with the mean of the others, averaged over the draws.

    It is about what the real values would reach if they were a draw of the model: the noise in the values, which no
    model predicts, limits it. NaN for fewer than 3 draws, or where the values are constant.
    """
    n_cells, sums, shift = 0, np.zeros((5, 1)), 0.0
    for values in slices():
        draws = np.nan_to_num(values[1:].astype(np.float64))
        if len(draws) < 3:
            return Estimate(np.nan, np.nan)
        shift = shift if n_cells else float(draws.mean())  # about the mean, so that the squares keep their digits
        one = draws - shift
        others = (one.sum(0) - one) / (len(one) - 1)
        sums = sums + [each.sum(1) for each in (one, others, one**2, others**2, one * others)]
        n_cells += one.shape[1]
    means = sums / max(n_cells, 1)
    products, squares = means[4] - means[0] * means[1], (means[2] - means[0] ** 2) * (means[3] - means[1] ** 2)
    found = np.divide(np.maximum(products, 0) ** 2, squares, out=np.full(len(squares), np.nan), where=squares > 0)
    return mean_of_draws(found.tolist())


def bin_cells(slices: Slices, what: str) -> Density:
    """The scatter of means over draws against real values, as a grid."""
    lowest, highest = np.full(2, np.inf), np.full(2, -np.inf)
    for values in slices():
        pairs = _pair(values)
        shown = pairs[:, (pairs > 0).all(0)]
        if shown.shape[1]:
            lowest, highest = np.minimum(lowest, shown.min(1)), np.maximum(highest, shown.max(1))
    edges = [make_edges(low, high) for low, high in zip(lowest, highest)]
    counts, n_left_out = np.zeros((N_BOXES, N_BOXES), np.int64), 0
    for values in slices():
        here, left_out = count_boxes(_pair(values), edges)
        counts, n_left_out = counts + here, n_left_out + left_out
    return make_density(what, edges, counts, n_left_out)


def bin_values(real: np.ndarray, drawn: np.ndarray, what: str) -> Density:
    """The same of values in memory: real [n], and their means over draws [n]."""
    return bin_cells(lambda: iter([np.stack([real, drawn])]), what)


def make_edges(low: float, high: float) -> np.ndarray:
    """Edges of the boxes, float64 [boxes + 1], that grow geometrically and hold both ends; 1 to 10 without any."""
    if not np.isfinite(low):
        return np.geomspace(1, 10, N_BOXES + 1)
    return np.geomspace(low * (1 - 1e-6), max(high, low * 1.01) * (1 + 1e-6), N_BOXES + 1)


def count_boxes(pairs: np.ndarray, edges: list[np.ndarray]) -> tuple[np.ndarray, int]:
    """Points of pairs [2, n] in each box, and how many have no place on logarithmic axes."""
    shown = pairs[:, (pairs > 0).all(0)]
    places = [np.searchsorted(each, values, side="right") - 1 for each, values in zip(edges, shown)]
    flat = np.bincount(places[0] * N_BOXES + places[1], minlength=N_BOXES**2)
    return flat.reshape(N_BOXES, N_BOXES), pairs.shape[1] - shown.shape[1]


def make_density(what: str, edges: list[np.ndarray], counts: np.ndarray, n_left_out: int) -> Density:
    """The grid as plain values; edges with six digits, which a page needs."""
    x, y = (tuple(float(f"{edge:.6g}") for edge in each) for each in edges)
    return Density(what, x, y, tuple(map(tuple, counts.tolist())), n_left_out)


def _pair(values: np.ndarray) -> np.ndarray:
    """float64 [2, cells]: real values and means over draws; undefined ones are 0."""
    return np.stack([np.nan_to_num(values[0].astype(np.float64)), mean_known(values[1:])])


def _stream_agreements(slices: Slices) -> list[Agreement]:
    """Of the mean over all draws, then of that without each of them in turn (nothing more of a single draw)."""
    n_cells, sums, counts = 0, np.zeros(1), np.zeros((1, 1), np.int64)
    for values in slices():
        rows = _leave_out(values)
        if not n_cells:
            sums, counts = np.zeros(len(rows)), np.zeros((len(rows), N_KEYS), np.int32)
        sums += rows.sum(1)
        for count, row in zip(counts, rows):
            np.add.at(count, *np.unique(_key(row), return_counts=True))
        n_cells += rows.shape[1]
    means = sums / n_cells
    squares, products, gaps, absolute, rank_squares, rank_products = np.zeros((6, len(sums)))
    ranks = np.cumsum(counts, axis=1, dtype=np.float64) - (counts - 1) / 2 - (n_cells + 1) / 2
    del counts
    for values in slices():
        rows = _leave_out(values)
        centred, ranked = rows - means[:, None], np.stack([rank[_key(row)] for rank, row in zip(ranks, rows)])
        squares += (centred**2).sum(1)
        products += centred @ centred[0]
        gaps += ((rows - rows[0]) ** 2).sum(1)
        absolute += np.abs(rows - rows[0]).sum(1)
        rank_squares += (ranked**2).sum(1)
        rank_products += ranked @ ranked[0]
    return [
        Agreement(
            absolute[k] / n_cells,
            _correlation(products[k], squares[k], squares[0]),
            _correlation(rank_products[k], rank_squares[k], rank_squares[0]),
            1 - gaps[k] / squares[k] if squares[k] > 0 else np.nan,
        )
        for k in range(1, len(sums))
    ]


def _leave_out(values: np.ndarray) -> np.ndarray:
    """float64 [2 + draws, cells]: the real values, the mean over all draws, and that without each of several draws."""
    real, draws = np.nan_to_num(values[0].astype(np.float64)), values[1:]
    without = [mean_known(np.delete(draws, k, axis=0)) for k in range(len(draws) if len(draws) > 1 else 0)]
    return np.stack([real, mean_known(draws), *without])


def _key(values: np.ndarray) -> np.ndarray:
    """int64, below N_KEYS: the first bits of values >= 0 as float32, which are in the order of the values."""
    rounded = values.astype(np.float32).view(np.uint32).astype(np.int64) + (1 << (22 - KEPT_BITS))
    return np.clip((rounded >> (23 - KEPT_BITS)) - ((127 + EXPONENTS.start) << KEPT_BITS), 0, N_KEYS - 1)


def _correlation(product: float, one: float, other: float) -> float:
    return float(np.clip(product / np.sqrt(one * other), -1, 1)) if one > 0 and other > 0 else np.nan
