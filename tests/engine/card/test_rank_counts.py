import numpy as np
import pytest
from scipy import sparse

from atlasvi.engine.card.rank_counts import RankCounts
from tests.engine.card.counts import make_counts

RANDOM = np.random.default_rng(0)


def add(real: np.ndarray, draws: np.ndarray, step: int = 7) -> RankCounts:
    """real [cells, genes], draws [draws, cells, genes]."""
    found = RankCounts.empty(len(draws))
    for at in range(0, len(real), step):
        here = slice(at, at + step)
        found.add(sparse.csr_matrix(real[here]), [sparse.csr_matrix(draw[here]) for draw in draws])
    return found


def test_ranks_are_those_of_dense_counts_where_not_all_are_zero():
    real, draws = make_counts(seed=0).toarray(), np.array([make_counts(seed=k).toarray() for k in (1, 2, 3)])
    below, ties = (draws < real).sum(0), (draws == real).sum(0)
    some = (real > 0) | (draws > 0).any(0)
    expected = np.zeros((4, 4), int)
    np.add.at(expected, (below[some], ties[some]), 1)
    np.testing.assert_array_equal(add(real, draws).table, expected)


def test_unsorted_columns_give_the_same():
    real, draw = make_counts(seed=0), make_counts(seed=1)
    turned = sparse.csr_matrix((draw.data[::-1], draw.indices[::-1], draw.nnz - draw.indptr[::-1]), draw.shape)[::-1]
    one, other = RankCounts.empty(1), RankCounts.empty(1)
    one.add(real, [draw])
    other.add(real, [turned.tocsr()])
    np.testing.assert_array_equal(one.table, other.table)


def test_draws_of_the_right_distribution_are_calibrated():
    means = RANDOM.gamma(0.5, 2, (300, 40))
    counts = RANDOM.poisson(means, (6, 300, 40)).astype(np.float32)
    found = add(counts[0], counts[1:]).calibrate()
    assert found.rank_histogram == pytest.approx([1 / 6] * 6, abs=0.01)
    assert [point.expected for point in found.points] == pytest.approx([1 / 3, 2 / 3])
    for point in found.points:
        assert abs(point.observed.value - point.expected) < 4 * point.observed.error < 0.05


def test_draws_of_too_small_a_spread_are_not():
    rates = RANDOM.gamma(1, 5, (300, 40))
    found = add(RANDOM.poisson(rates), RANDOM.poisson(np.full((5, 300, 40), 5.0))).calibrate()
    assert found.points[-1].observed.value < 0.6
    assert found.error.value > 0.05
    assert found.rank_histogram[0] > 0.2 < found.rank_histogram[-1]


def test_the_error_is_that_over_cells():
    whole = []
    for seed in range(40):
        draw = np.random.default_rng(seed)
        counts = draw.poisson(np.full((3, 50, 20), 1.0) * draw.gamma(1, 1, (50, 1))).astype(np.float32)
        whole.append(add(counts[0], counts[1:]).calibrate().points[0].observed)
    assert np.std([each.value for each in whole]) == pytest.approx(np.mean([each.error for each in whole]), rel=0.4)


def test_one_draw_and_no_counts_have_no_calibration():
    assert add(np.ones((3, 4)), np.ones((1, 3, 4))).calibrate() is None
    assert add(np.zeros((3, 4)), np.zeros((2, 3, 4))).calibrate() is None
