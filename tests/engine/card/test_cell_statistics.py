import numpy as np
import pytest

from atlasvi.engine.card.cell_statistics import cell_statistics, coefficient_of_variation
from tests.engine.card.counts import make_counts


def test_the_statistics_of_each_cell_are_those_of_the_dense_counts():
    counts = make_counts()
    dense = counts.toarray().astype(float)
    found = cell_statistics(counts)
    np.testing.assert_allclose(found.variation[1:], dense[1:].std(1) / dense[1:].mean(1), rtol=1e-6)
    assert np.isnan(found.variation[0])  # a cell without counts
    np.testing.assert_array_equal(found.library, dense.sum(1))
    np.testing.assert_array_equal(found.expressed, (dense > 0).sum(1))


def test_counts_that_are_all_equal_have_no_variation_and_large_ones_keep_their_digits():
    assert coefficient_of_variation(np.array([30.0]), np.array([90.0]), 10).tolist() == [0]
    values = np.array([1e7, 1e7 + 5e4, 1e7 - 5e4])
    found = coefficient_of_variation(values.sum(), (values**2).sum(), 3)
    assert found == pytest.approx(values.std() / values.mean(), rel=1e-6)
