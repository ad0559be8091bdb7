import numpy as np
import pytest

from atlasvi.engine.card.draw_errors import jackknife, mean_known, mean_of_draws


def test_the_mean_of_a_figure_has_the_standard_error_of_a_mean():
    values = np.array([0.2, 0.5, 0.3, 0.9])
    estimate = mean_of_draws(values)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.error == pytest.approx(values.std(ddof=1) / 2)
    assert mean_of_draws([0.2, np.nan, 0.4]).value == pytest.approx(0.3)
    assert np.isnan(mean_of_draws([0.2]).error)
    assert np.isnan(mean_of_draws([np.nan]).value)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    draws = np.random.default_rng(0).normal(size=(6, 40))
    (estimate,) = jackknife(lambda mean: [mean.mean()], draws)
    per_draw = draws.mean(1)
    assert estimate.value == pytest.approx(per_draw.mean())
    assert estimate.error == pytest.approx(per_draw.std(ddof=1) / np.sqrt(6))
    (single,) = jackknife(lambda mean: [mean.mean()], draws[:1])
    assert np.isnan(single.error)


def test_the_jackknife_says_how_much_a_correlation_moves_when_drawn_anew():
    random = np.random.default_rng(1)
    real = random.normal(size=300)

    def estimate():
        draws = real + random.normal(0, 2, (5, 300))
        return jackknife(lambda mean: [np.corrcoef(mean, real)[0, 1]], draws)[0]

    estimates = [estimate() for _ in range(60)]
    spread = np.std([each.value for each in estimates])
    assert np.mean([each.error for each in estimates]) == pytest.approx(spread, rel=0.35)


def test_draws_that_are_undefined_are_left_out_and_where_all_are_the_mean_is_0():
    draws = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan]])
    assert mean_known(draws).tolist() == [2, 5, 0]
