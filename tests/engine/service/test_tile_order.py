import numpy as np

from atlasvi.engine.service.tile_order import TILE_CELLS, count_levels, count_tiles, mark_inside, order_keys
from tests.engine.service.embedded import draw_points

LOW = np.array([-10.0, -40.0])
SCALE = np.full(2, 2**16 / 60)


def find_levels(keys: np.ndarray) -> np.ndarray:
    return (keys >> np.uint64(32)).astype(int)


def test_each_level_has_half_the_cells_up_to_it_and_the_first_those_of_a_tile():
    n_cells = 8 * TILE_CELLS
    levels = find_levels(order_keys(draw_points(n_cells), 0, n_cells, LOW, SCALE))
    assert count_levels(n_cells) == levels.max() + 1 == 4
    sizes = np.bincount(levels)
    np.testing.assert_allclose(sizes / n_cells, [1 / 8, 1 / 8, 1 / 4, 1 / 2], rtol=0.02)


def test_the_level_of_a_cell_does_not_depend_on_where_it_is_nor_on_how_the_cells_are_sliced():
    points = draw_points(1000)
    whole = order_keys(points, 0, 10**6, LOW, SCALE)
    parts = [order_keys(points[at : at + 100], at, 10**6, LOW, SCALE) for at in range(0, 1000, 100)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    np.testing.assert_array_equal(find_levels(whole), find_levels(order_keys(points[::-1], 0, 10**6, LOW, SCALE)))


def test_every_level_is_a_picture_of_the_whole_also_of_its_rare_cells():
    n_cells = 4 * TILE_CELLS
    points = draw_points(n_cells)
    levels = find_levels(order_keys(points, 0, n_cells, LOW, SCALE))
    is_rare = points[:, 1] < -20
    for level in range(3):
        share = is_rare[levels == level].mean()
        expected = is_rare.mean()
        assert abs(share - expected) < 5 * np.sqrt(expected / np.count_nonzero(levels == level))


def test_steps_along_the_curve_are_steps_to_a_place_beside_and_no_place_comes_twice():
    side = 64
    points = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2).astype(np.float32)
    keys = order_keys(points, 0, 1, np.zeros(2), np.full(2, 2**16 / side))
    along = points[np.argsort(keys)]
    assert len(np.unique(keys)) == side**2
    np.testing.assert_array_equal(np.abs(np.diff(along, axis=0)).sum(1), 1)


def test_cells_without_coordinates_come_last():
    points = np.array([[0, 0], [np.nan, 0], [0, np.inf]], np.float32)
    keys = order_keys(points, 0, 3, LOW, SCALE)
    assert keys[0] < 2**32
    assert (keys[1:] == np.uint64(0xFFFFFFFFFFFFFFFF)).all()


def test_tiles_have_about_their_size_and_small_levels_have_one():
    assert [count_tiles(n) for n in (0, 1, TILE_CELLS + 300, 10 * TILE_CELLS)] == [0, 1, 1, 10]


def test_points_in_a_polygon_are_those_of_its_triangles():
    # a polygon that is not convex, as an L: the union of two rectangles
    corners = np.array([[0, 0], [4, 0], [4, 1], [1, 1], [1, 3], [0, 3]], float)
    x, y = np.random.default_rng(0).uniform(-1, 5, (2, 10_000))
    expected = ((x > 0) & (x < 4) & (y > 0) & (y < 1)) | ((x > 0) & (x < 1) & (y > 0) & (y < 3))
    np.testing.assert_array_equal(mark_inside(x, y, corners), expected)
    np.testing.assert_array_equal(mark_inside(x, y, corners[::-1].copy()), expected)
