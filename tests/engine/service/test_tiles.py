import json
from pathlib import Path

import numpy as np
import pytest

from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.engine.service import tiles as tiles_module
from atlasvi.engine.service.tile_order import TILE_CELLS
from atlasvi.engine.service.tiles import Tiles, build_tiles, name_tiles, open_tiles
from atlasvi.loaders.errors import OutputError, SourceError
from tests.engine.service.embedded import EmbeddedCells, draw_points

N_CELLS = 5 * TILE_CELLS // 2


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[EmbeddedCells, Tiles]:
    store = EmbeddedCells(tmp_path_factory.mktemp("tiles"), draw_points(N_CELLS))
    return store, open_tiles(store)


def place_all(tiles: Tiles) -> np.ndarray:
    return np.concatenate([np.stack(tiles.place_points(number), 1) for number in range(tiles.n_tiles)])


def test_each_cell_has_one_point_where_its_coordinates_are(built: tuple[EmbeddedCells, Tiles]):
    store, tiles = built
    np.testing.assert_array_equal(np.sort(tiles.cells), np.arange(N_CELLS))
    placed = place_all(tiles)
    sizes = np.array([[x1 - x0, y1 - y0] for x0, y0, x1, y1 in tiles.index.boxes])
    most = np.repeat(sizes, np.diff(tiles.index.starts), axis=0) / 131_070
    assert (np.abs(placed - store.points[tiles.cells]) <= most * 1.001 + 1e-6).all()


def test_tiles_of_a_level_follow_each_other_and_later_ones_are_small(built: tuple[EmbeddedCells, Tiles]):
    _, tiles = built
    assert tiles.index.levels[:2] == [0, 1]
    assert tiles.index.starts[-1] == N_CELLS
    sizes = np.diff(tiles.index.starts)
    assert sizes.min() > 0.4 * TILE_CELLS
    assert sizes.max() < 1.5 * TILE_CELLS
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in tiles.index.boxes]
    assert max(areas[1:]) <= areas[0] * 1.2


def test_sorting_in_groups_gives_the_same_tiles(
    built: tuple[EmbeddedCells, Tiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store, tiles = built
    monkeypatch.setattr(tiles_module, "GROUP_CELLS", 10_000)
    monkeypatch.setattr(tiles_module, "SLICE_CELLS", 30_000)
    other = Tiles(build_tiles(store, tmp_path / "other.tiles"), store)
    np.testing.assert_array_equal(other.cells, tiles.cells)
    np.testing.assert_array_equal(place_all(other), place_all(tiles))


def test_a_polygon_chooses_the_cells_inside(built: tuple[EmbeddedCells, Tiles]):
    store, tiles = built
    found = tiles.find_inside([[-1, -1], [1, -1], [0, 2]])
    x, y = store.points.astype(np.float64).T
    inside = (y > -1) & (y < 2 - 3 * x) & (y < 2 + 3 * x)
    distance = np.abs(np.stack([y + 1, (2 - 3 * x - y) / 3.2, (2 + 3 * x - y) / 3.2])).min(0)
    np.testing.assert_array_equal(np.isin(np.arange(N_CELLS), found)[distance > 1e-3], inside[distance > 1e-3])
    assert len(found) > 1000
    assert (np.diff(found) > 0).all()


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        ([], "3 to 2,000 corners"),
        ([[0, 0], [1, 1]], "3 to 2,000 corners"),
        ([[0, 0, 0]] * 3, "two numbers"),
        ([["a", 0]] * 3, "two numbers"),
        ("polygon", "two numbers"),
        ([[0, 0], [1, 0], [0, float("nan")]], "not a finite number"),
    ],
)
def test_what_is_no_polygon_is_refused(built: tuple[EmbeddedCells, Tiles], polygon: object, message: str):
    with pytest.raises(QueryError, match=message):
        built[1].find_inside(polygon)


def test_a_tile_that_is_not_there_is_refused(built: tuple[EmbeddedCells, Tiles]):
    for number in (-1, built[1].n_tiles):
        with pytest.raises(QueryError, match="there is no tile"):
            built[1].read_points(number)


def test_cells_without_coordinates_have_no_point(tmp_path: Path):
    points = draw_points(100)
    points[[3, 50], [0, 1]] = np.nan, np.inf
    tiles = open_tiles(EmbeddedCells(tmp_path, points))
    np.testing.assert_array_equal(np.sort(tiles.cells), np.delete(np.arange(100), [3, 50]))


@pytest.mark.parametrize("points", [np.zeros((1, 2)), np.ones((500, 2)), np.array([[0, 1], [0, 2]])])
def test_one_cell_and_cells_at_one_place_or_on_a_line_have_tiles(tmp_path: Path, points: np.ndarray):
    tiles = open_tiles(EmbeddedCells(tmp_path, points))
    np.testing.assert_array_equal(np.sort(place_all(tiles), 0), np.sort(points, 0))


def test_a_store_where_no_cell_has_coordinates_is_refused(tmp_path: Path):
    store = EmbeddedCells(tmp_path, np.full((5, 2), np.nan))
    with pytest.raises(SourceError, match=r"no cell has coordinates.*embed"):
        open_tiles(store)
    assert not name_tiles(store.path).exists()


def test_tiles_are_opened_again_and_built_again_for_other_coordinates(tmp_path: Path):
    store = EmbeddedCells(tmp_path, draw_points(1000))
    folder = open_tiles(store).folder
    stamp = (folder / "cells.bin").stat().st_mtime_ns
    assert (open_tiles(store).folder / "cells.bin").stat().st_mtime_ns == stamp
    store.points = draw_points(1000, seed=1)
    np.testing.assert_allclose(np.sort(place_all(open_tiles(store)), 0), np.sort(store.points, 0), atol=0.01)


def test_damaged_and_foreign_folders_are_refused_in_a_sentence(tmp_path: Path):
    store = EmbeddedCells(tmp_path, draw_points(1000))
    folder = open_tiles(store).folder
    content = json.loads((folder / "index.json").read_text())
    content["starts"][-1] += 1
    (folder / "index.json").write_text(json.dumps(content))
    with pytest.raises(SourceError, match=r"index\.json"):
        open_tiles(store)
    (folder / "index.json").unlink()
    with pytest.raises(OutputError, match="something else is there"):
        open_tiles(store)


def test_where_the_folder_of_the_store_is_read_only_tiles_are_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tiles_module.os, "access", lambda path, mode: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = EmbeddedCells(tmp_path, draw_points(10))
    assert open_tiles(store).folder.parent == tmp_path / "cache" / "atlasvi"
