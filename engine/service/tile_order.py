"""The order of cells in tiles: by level, and within a level along a Hilbert curve; and which of them are in a polygon.

A level is a random subset of the cells, so that the first levels together are a picture of the whole. The level of a
cell depends on its index alone. Along the curve, cells that follow each other are near each other, so that a run of
them is a tile: a part of the picture with a small box around it (Hilbert 1891, Mathematische Annalen 38:459).
"""

import numpy as np
from numba import njit

from atlasvi.engine.queries.place_beside import scramble

TILE_CELLS = 2**16  # cells of a tile, about: 262 kB of coordinates
STEPS = 16  # bits of each coordinate on the curve


def count_levels(n_cells: int) -> int:
    """Number of levels: the first has the cells of one tile, and each further one doubles the cells drawn."""
    return 1 + max(int(np.ceil(np.log2(max(n_cells, 1) / TILE_CELLS))), 0)


def count_tiles(n_cells: int) -> int:
    """Number of tiles of a level with this many cells; they are of equal size, give or take one cell."""
    return 0 if n_cells == 0 else max(round(n_cells / TILE_CELLS), 1)


@njit(nogil=True, cache=True)
def order_keys(points: np.ndarray, first: int, n_cells: int, low: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """uint64 [points]: the level of each cell (upper 32 bits), and its place on the curve (lower 32 bits).

    points  float32 [points, 2], of cells first, first + 1, ...; where one is not finite, the key is the largest uint64
    n_cells cells of the whole
    low     float64 [2]: the smallest coordinates
    scale   float64 [2]: steps of the curve for a unit of the coordinates
    """
    keys = np.empty(len(points), np.uint64)
    for i in range(len(points)):
        if not (np.isfinite(points[i, 0]) and np.isfinite(points[i, 1])):
            keys[i] = np.uint64(0xFFFFFFFFFFFFFFFF)
            continue
        level, edge, draw = 0, np.float64(TILE_CELLS) / n_cells, _draw(first + i)
        while draw >= edge:
            level += 1
            edge *= 2.0
        x = np.int64(min((points[i, 0] - low[0]) * scale[0], 2.0**STEPS - 1))
        y = np.int64(min((points[i, 1] - low[1]) * scale[1], 2.0**STEPS - 1))
        keys[i] = (np.uint64(level) << np.uint64(32)) | np.uint64(_place_on_curve(x, y))  # type: ignore[arg-type]
    return keys


@njit(nogil=True, cache=True)
def _draw(cell: int) -> float:
    """A number in [0, 1) that depends on the cell's index alone (splitmix64, Steele et al. 2014)."""
    state = np.uint64(cell) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
    return np.float64(scramble(state) >> np.uint64(11)) / 2.0**53


@njit(nogil=True, cache=True)
def _place_on_curve(x: int, y: int) -> int:
    """The distance along a Hilbert curve through all pairs of integers below 2**STEPS."""
    place, side = 0, 1 << (STEPS - 1)
    while side > 0:
        right, upper = int((x & side) > 0), int((y & side) > 0)
        place += side * side * ((3 * right) ^ upper)
        if upper == 0:
            if right == 1:
                x, y = (2**STEPS - 1) - x, (2**STEPS - 1) - y
            x, y = y, x
        side >>= 1
    return place


@njit(nogil=True, cache=True)
def mark_inside(x: np.ndarray, y: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """bool [points]: which points are in a polygon, float64 [corners, 2], by the number of its edges to their right."""
    inside = np.zeros(len(x), np.bool_)
    left, right = polygon[:, 0].min(), polygon[:, 0].max()
    lower, upper = polygon[:, 1].min(), polygon[:, 1].max()
    for i in range(len(x)):
        if x[i] < left or x[i] > right or y[i] < lower or y[i] > upper:
            continue
        before, odd = len(polygon) - 1, False
        for corner in range(len(polygon)):
            y1, y2 = polygon[corner, 1], polygon[before, 1]
            if (y1 > y[i]) != (y2 > y[i]):
                x1, x2 = polygon[corner, 0], polygon[before, 0]
                if x[i] < (x2 - x1) * (y[i] - y1) / (y2 - y1) + x1:
                    odd = not odd
            before = corner
        inside[i] = odd
    return inside
