"""Cells are placed beside their neighbours in a map."""

import numpy as np
import pytest

from atlasvi.engine.queries.place_beside import fit_curve, place_beside, weigh_neighbours

MIN_DISTANCE = 0.4
RANDOM = np.random.default_rng(0)
MAP = np.concatenate([RANDOM.normal((x, 0), 1, (100, 2)) for x in (-10, 10)]).astype(np.float32)
NEIGHBOURS = np.concatenate([RANDOM.choice(100, (40, 15)), 100 + RANDOM.choice(100, (40, 15))])
DISTANCES = np.sort(RANDOM.uniform(1, 2, (80, 15)), axis=1).astype(np.float32)
CELLS = np.arange(80)


def place(rows: slice | np.ndarray = slice(None), seed: int = 0, **options: int) -> np.ndarray:
    return place_beside(MAP, NEIGHBOURS[rows], DISTANCES[rows], CELLS[rows], seed, MIN_DISTANCE, **options)


def test_a_cell_stays_with_the_group_of_its_neighbours() -> None:
    places = place()
    assert places.dtype == np.float32
    assert (np.sign(places[:, 0]) == np.repeat([-1, 1], 40)).all()
    assert np.abs(np.abs(places[:, 0]) - 10).max() < 5
    # without steps it is the weighted mean of its neighbours
    expected = (weigh_neighbours(DISTANCES)[..., None] * MAP[NEIGHBOURS]).sum(axis=1)
    np.testing.assert_allclose(place(steps=0), expected, rtol=1e-5, atol=1e-5)


def test_a_place_depends_on_seed_and_cell_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = place()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = np.array([70, 3, 41])
    np.testing.assert_array_equal(place(rows), whole[rows])
    assert not np.array_equal(place(seed=1), whole)


def test_weights_are_those_of_umap() -> None:
    weights = weigh_neighbours(DISTANCES)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    scaled = weights / weights[:, :1]  # the nearest has membership 1
    np.testing.assert_allclose(scaled.sum(axis=1), np.log2(15), rtol=1e-6)
    assert np.array_equal(weigh_neighbours(np.zeros((2, 4), np.float32)), np.full((2, 4), 0.25))
    assert np.array_equal(weigh_neighbours(np.ones((3, 1), np.float32)), np.ones((3, 1)))


def test_the_curve_is_that_of_umap_learn() -> None:
    umap = pytest.importorskip("umap.umap_")
    np.testing.assert_allclose(fit_curve(MIN_DISTANCE), umap.find_ab_params(1.0, MIN_DISTANCE), rtol=1e-3)
