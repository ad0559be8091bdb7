import numpy as np
import pytest

from atlasvi.engine.neighbours.centroids import choose_n_lists, train_centroids
from tests.engine.neighbours.small_latents import make_latents


def test_cells_get_the_nearest_list_or_one_nearly_as_near():
    latents = make_latents(6_000).qzm
    centroids = train_centroids(latents, 300, seed=0)
    assert 250 < len(centroids.lists) < 350
    squared = ((latents[:, None] - centroids.lists) ** 2).sum(2)
    found = squared[np.arange(len(latents)), centroids.assign(latents)]
    assert (found <= squared.min(1) + 1e-3).mean() > 0.97
    assert found.mean() < 1.02 * squared.min(1).mean()


@pytest.mark.parametrize("n_cells", [1, 2, 30])
def test_few_and_equal_cells_have_centroids(n_cells: int):
    latents = np.ones((n_cells, 3), np.float32)
    centroids = train_centroids(latents, 5, seed=0)
    np.testing.assert_array_equal(centroids.lists, np.ones((len(centroids.lists), 3)))
    assert (centroids.assign(latents) < len(centroids.lists)).all()


def test_the_same_seed_gives_the_same_centroids():
    latents = make_latents(2_000).qzm
    one, same, other = (train_centroids(latents, 40, seed).lists for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one[: len(other)], other[: len(one)])


@pytest.mark.parametrize(("n_cells", "expected"), [(1, 1), (12_000, 10), (10_000_000, 8_333), (10**9, 16_384)])
def test_lists_grow_with_the_cells_up_to_a_limit(n_cells: int, expected: int):
    assert choose_n_lists(n_cells) == expected
