import numpy as np
import pytest

from atlasvi.engine.card import cell_agreement
from atlasvi.engine.card.cell_agreement import N_BOXES, agree_among_draws, agree_over_cells, bin_cells, bin_values


def make_values(n_draws: int = 3, n_cells: int = 5000) -> np.ndarray:
    """float32 [1 + draws, cells]; the real value of a cell and a draw of another are undefined."""
    random = np.random.default_rng(0)
    real = random.gamma(5, 1, n_cells)
    values = np.stack([real, *(real * random.gamma(20, 1 / 20, (n_draws, n_cells)))]).astype(np.float32)
    values[0, 3], values[1, 4] = np.nan, np.nan
    return values


def slices_of(values: np.ndarray, step: int = 700):
    return lambda: (values[:, at : at + step] for at in range(0, values.shape[1], step))


@pytest.mark.parametrize("n_draws", [1, 3])
@pytest.mark.parametrize("kind", ["continuous", "whole numbers", "constant"])
def test_sums_over_slices_agree_with_the_exact_figures(n_draws: int, kind: str, monkeypatch):
    values = make_values(n_draws)
    if kind != "continuous":
        values = np.floor(values) if kind == "whole numbers" else np.ones_like(values)
    exact = agree_over_cells(slices_of(values), values.shape[1])
    monkeypatch.setattr(cell_agreement, "EXACT_CELLS", 0)
    streamed = agree_over_cells(slices_of(values), values.shape[1])
    assert exact.keys() == streamed.keys()
    for name, estimate in exact.items():
        assert streamed[name].value == pytest.approx(estimate.value, rel=2e-6, abs=1e-9, nan_ok=True)
        assert streamed[name].error == pytest.approx(estimate.error, rel=1e-2, abs=1e-9, nan_ok=True)


def test_a_grid_holds_every_cell_that_has_a_place_on_logarithmic_axes():
    values = make_values()
    grid = bin_cells(slices_of(values), "something")
    counts = np.array(grid.counts)
    assert counts.shape == (N_BOXES, N_BOXES)
    assert counts.sum() == 4999
    assert grid.n_left_out == 1
    real, drawn = np.nan_to_num(values[0]), np.nanmean(values[1:], axis=0)
    some = real > 0
    expected, *_ = np.histogram2d(real[some], drawn[some], [grid.x_edges, grid.y_edges])
    assert np.abs(expected - counts).sum() < 20  # the edges are rounded to six digits


def test_a_grid_of_equal_values_or_of_none_has_edges_that_ascend():
    for values in (np.ones(5), np.zeros(5), np.zeros(0)):
        grid = bin_values(values, values, "something")
        assert np.all(np.diff(grid.x_edges) > 0)
        assert np.sum(grid.counts) == (values > 0).sum()


def test_real_values_that_are_a_draw_of_the_model_reach_what_a_draw_itself_does():
    random = np.random.default_rng(0)
    for noise in (0.3, 3.0):
        values = (random.gamma(5, 1, 20_000) + random.normal(0, noise, (6, 20_000))).astype(np.float32)
        itself = agree_among_draws(slices_of(values))
        reached = [np.corrcoef(draw, np.delete(values[1:], k, 0).mean(0))[0, 1] for k, draw in enumerate(values[1:])]
        assert itself.value == pytest.approx(np.mean(np.square(reached)), rel=1e-6)
        real = agree_over_cells(slices_of(values), 20_000)["pearson"].value ** 2
        assert itself.value == pytest.approx(real, abs=0.02)
    assert np.isnan(agree_among_draws(slices_of(make_values(2))).value)
    assert np.isnan(agree_among_draws(slices_of(np.ones((4, 50), np.float32))).value)
