import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlasvi.engine.neighbours.exact_search import search_exactly
from tests.engine.neighbours.small_latents import search_plainly


@given(
    seed=st.integers(0, 2**32 - 1),
    n_cells=st.integers(1, 600),
    n_latent=st.integers(1, 9),
    k=st.integers(1, 30),
    levels=st.integers(1, 50),
)
def test_the_nearest_are_those_of_a_sort_of_all_pairs_whatever_the_parts(
    seed: int, n_cells: int, n_latent: int, k: int, levels: int
):
    """Whole numbers: distances are exact and often equal, so that the order of ties is tested too."""
    random = np.random.default_rng(seed)
    latents = random.integers(levels, size=(n_cells, n_latent)).astype(np.float32)
    spreads = random.integers(3, size=n_cells).astype(np.float32)
    queries = random.integers(levels, size=(7, n_latent)).astype(np.float32)
    own = random.integers(-1, n_cells, size=7)
    chosen = np.flatnonzero(random.random(n_cells) < 0.8)
    parts = [(latents[part], part, spreads[part]) for part in np.array_split(chosen, random.integers(1, 4))]
    distances, cells = search_exactly(parts, queries, k, own)
    mask = np.isin(np.arange(n_cells), chosen)
    expected, expected_cells = search_plainly(latents, spreads, queries, k, own, mask)
    n = expected.shape[1]
    np.testing.assert_array_equal(cells[:, :n], expected_cells)
    np.testing.assert_array_equal(distances[:, :n], expected)
    assert (cells[:, n:] == -1).all()
    assert np.isinf(distances[:, n:]).all()


def test_the_distance_by_posterior_is_the_mean_over_draws():
    random = np.random.default_rng(0)
    mean, other = random.standard_normal((2, 4)).astype(np.float32)
    variance, other_variance = random.gamma(2, 0.2, (2, 4)).astype(np.float32)
    parts = [(other[None], np.array([0]), other_variance.sum(keepdims=True))]
    squared = search_exactly(parts, mean[None], 1)[0][0, 0] + variance.sum()
    draws = mean + np.sqrt(variance) * random.standard_normal((400_000, 4))
    draws -= other + np.sqrt(other_variance) * random.standard_normal((400_000, 4))
    assert squared == pytest.approx((draws**2).sum(1).mean(), rel=0.01)
