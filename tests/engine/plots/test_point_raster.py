"""Every pixel shows one of its cells at random, and cells of a lower layer only where no others are."""

import numpy as np
import pytest

from atlasvi.engine.plots.point_raster import NO_CELL, PixelGrid, choose_shape, draw_points, paint, thin_cells


def make_grid(width: int = 100, height: int = 100) -> PixelGrid:
    return PixelGrid(np.array([0.0, 0.0]), np.array([1.0, 1.0]), width, height, margin=0.0)


def test_cells_are_where_their_places_are_with_the_second_coordinate_upwards() -> None:
    places = np.array([[0.05, 0.95], [0.95, 0.05], [0.5, 0.5], [np.nan, 0.5], [0.5, np.inf]], np.float32)
    shown = draw_points(make_grid(), places, 0.0, fine=1)
    found = {int(cell): tuple(np.argwhere(shown == cell)[0]) for cell in np.unique(shown[shown != NO_CELL])}
    assert found == {0: (5, 5), 1: (95, 95), 2: (50, 50)}


def test_both_directions_have_one_scale() -> None:
    grid = PixelGrid(np.array([0.0, 0.0]), np.array([10.0, 5.0]), 200, 200, margin=0.0)
    pixels = grid.find_pixels(np.array([[0, 0], [10, 5]], np.float32))
    np.testing.assert_allclose(pixels, [[0, 150], [200, 50]])
    assert choose_shape(np.zeros(2), np.array([10.0, 8.0])) == pytest.approx(0.8)
    assert choose_shape(np.zeros(2), np.array([10.0, 1.0])) == pytest.approx(1 / 1.4)
    one = PixelGrid(np.ones(2), np.ones(2), 50, 50)  # one cell
    np.testing.assert_allclose(one.find_pixels(np.ones((1, 2), np.float32)), [[25, 25]])


def test_each_of_two_mixed_groups_is_shown_in_its_share() -> None:
    random = np.random.default_rng(0)
    places = random.random((40_000, 2)).astype(np.float32)
    groups = np.arange(40_000) >= 30_000  # the last ones would cover the others, if cells were drawn in order
    shown = draw_points(make_grid(), places, 3.0)
    cells = shown[shown != NO_CELL]
    assert len(cells) == shown.size
    assert abs(groups[cells].mean() - 0.25) < 0.02
    np.testing.assert_array_equal(draw_points(make_grid(), places, 3.0), shown)


def test_lower_layers_show_only_where_no_others_are() -> None:
    places = np.full((3000, 2), 0.5, np.float32)
    places[0] = 0.1
    layers = np.zeros(3000, np.uint8)
    layers[[7, 9]] = 2, 1
    shown = draw_points(make_grid(), places, 4.0, layers)
    assert set(np.unique(shown)) == {0, 7, NO_CELL}


def test_discs_are_round_and_of_their_size() -> None:
    shown = draw_points(make_grid(), np.array([[0.505, 0.505]], np.float32), 20.0)
    rows, columns = np.nonzero(shown == 0)
    assert len(rows) == pytest.approx(np.pi * 20**2, rel=0.05)
    assert np.ptp(rows) == np.ptp(columns) == 40
    assert (draw_points(make_grid(), np.array([[0.5, 0.5]], np.float32), 0.0) == 0).sum() == 1


def test_colours_of_fine_pixels_are_averaged() -> None:
    shown = np.full((4, 4), NO_CELL, np.uint32)
    shown[:2, :2] = [[0, 0], [1, 1]]
    shown[2, 2] = 1
    picture = paint(shown, np.array([[200, 0, 0], [0, 100, 0]], np.uint8))
    assert picture.shape == (2, 2, 4)
    assert picture[0, 0].tolist() == [100, 50, 0, 255]
    assert picture[1, 1].tolist() == [0, 100, 0, 64]  # a quarter is covered
    assert picture[0, 1].tolist() == [0, 0, 0, 0]


def test_thinned_cells_have_a_pixel_each() -> None:
    places = np.random.default_rng(0).random((5000, 2)).astype(np.float32)
    grid = make_grid(20, 20)
    cells = thin_cells(grid, places)
    assert (np.diff(cells) > 0).all()
    pixels = np.floor(grid.find_pixels(places)).astype(int)
    assert len(np.unique(pixels[cells], axis=0)) == len(cells) == len(np.unique(pixels, axis=0))
