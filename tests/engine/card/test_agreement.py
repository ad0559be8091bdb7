import numpy as np
import pytest
from scipy import stats

from atlasvi.engine.card.agreement import compare


def test_the_figures_are_those_of_scipy_and_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    real = np.round(random.gamma(1, 2, 200), 1)  # with ties
    drawn = np.round(real + random.normal(0, 1, 200), 1)
    found = compare(drawn, real)
    assert found.mae == pytest.approx(metrics.mean_absolute_error(drawn, real))
    assert found.pearson == pytest.approx(stats.pearsonr(drawn, real)[0])
    assert found.spearman == pytest.approx(stats.spearmanr(drawn, real)[0])
    assert found.r2 == pytest.approx(metrics.r2_score(drawn, real))


def test_what_a_constant_vector_or_none_leaves_undefined_is_nan():
    values = np.array([1.0, 2.0, 4.0])
    real_is_constant = compare(values, np.full(3, 2.0))
    assert real_is_constant.mae == 1
    assert np.isnan(real_is_constant.pearson)
    assert np.isnan(real_is_constant.spearman)
    assert np.isfinite(real_is_constant.r2)
    drawn_is_constant = compare(np.full(3, 2.0), values)
    assert np.isnan(drawn_is_constant[1:]).all()
    assert np.isnan(compare(values[:0], values[:0])).all()
    assert compare(values, values) == (0, pytest.approx(1), pytest.approx(1), 1)
