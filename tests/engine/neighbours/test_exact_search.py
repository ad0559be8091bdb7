import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlasvi.engine.neighbours.exact_search import search_exactly, to_points
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
    queries = random.integers(levels, size=(7, n_latent)).astype(np.float32)
    own = random.integers(-1, n_cells, size=7)
    chosen = np.flatnonzero(random.random(n_cells) < 0.8)
    parts = [(latents[part], part) for part in np.array_split(chosen, random.integers(1, 4))]
    distances, cells = search_exactly(parts, queries, k, own)
    mask = np.isin(np.arange(n_cells), chosen)
    expected, expected_cells = search_plainly(latents, queries, k, own, mask)
    n = expected.shape[1]
    np.testing.assert_array_equal(cells[:, :n], expected_cells)
    np.testing.assert_array_equal(distances[:, :n], expected)
    assert (cells[:, n:] == -1).all()
    assert np.isinf(distances[:, n:]).all()


def test_the_distance_by_posterior_is_the_wasserstein_distance_of_the_normals():
    """In one dimension it is the distance of sorted draws; dimensions are independent, so their squares add up."""
    random = np.random.default_rng(0)
    qzm, qzv = random.standard_normal((2, 3)).astype(np.float32), random.gamma(2, 0.2, (2, 3)).astype(np.float32)
    points = to_points(qzm, qzv, by_posterior=True)
    squared = search_exactly([(points[1:], np.array([0]))], points[:1], 1)[0][0, 0]
    draws = qzm + np.sqrt(qzv) * random.standard_normal((200_000, 2, 3))
    one, other = np.sort(draws[:, 0], axis=0), np.sort(draws[:, 1], axis=0)
    assert squared == pytest.approx(((one - other) ** 2).mean(0).sum(), rel=0.02)
    np.testing.assert_array_equal(to_points(qzm, qzv, by_posterior=False), qzm)
