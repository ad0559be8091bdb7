"""Which cell each pixel of a picture shows.

Cells are discs of one size. Where several cover a pixel it shows one of them at random, by a hash of the cell's number:
as if the discs were drawn one over the other in random order, so that no group covers another, in time of the discs'
pixels alone. Cells of a lower layer (without a value) show only where no others are. The picture is drawn at twice its
size in each direction, and its colours are averaged, so that edges are smooth.
"""

import numpy as np
from numba import njit

from atlasvi.loaders.identity import mix64

FINE = 2  # rows and columns of fine pixels in a pixel
NO_CELL = np.uint32(2**32 - 1)
SLICE_CELLS = 2**20


class PixelGrid:
    """Where places in the plane are in a picture of [height, width] pixels, with the same scale in both directions."""

    def __init__(self, low: np.ndarray, high: np.ndarray, width: int, height: int, margin: float = 0.03) -> None:
        inner = np.array([width, height]) * (1 - 2 * margin)
        extent = np.maximum(high - low, 0)
        scales = [inner[k] / extent[k] for k in range(2) if extent[k] > 0]
        self.scale = float(min(scales, default=1.0))
        self.width, self.height = width, height
        self._middle = (low + high) / 2

    def find_pixels(self, places: np.ndarray) -> np.ndarray:
        """Places [cells, 2] as columns and rows from the top left corner, float32 [cells, 2]."""
        away = (places - self._middle) * self.scale
        return np.stack([self.width / 2 + away[:, 0], self.height / 2 - away[:, 1]], axis=1).astype(np.float32)


def choose_shape(low: np.ndarray, high: np.ndarray, longest: float = 1.4) -> float:
    """Height of a picture of these extents for a width of 1, between 1 / longest and `longest`."""
    width, height = np.maximum(high - low, 0)
    if width <= 0 or height <= 0:
        return 1.0
    return float(np.clip(height / width, 1 / longest, longest))


def draw_points(
    grid: PixelGrid, places: np.ndarray, diameter: float, layers: np.ndarray | None = None, fine: int = FINE
) -> np.ndarray:
    """The number of the cell that each fine pixel shows, uint32 [fine * height, fine * width]; NO_CELL where none is.

    places    float32 [cells, 2]; cells whose place is NaN are left out
    diameter  of a cell's disc, in pixels; a cell covers one fine pixel at least
    layers    uint8 [cells], 0 to 3: cells of a lower layer show where no cell of a higher one is; None: all the same
    """
    shape = grid.height * fine, grid.width * fine
    shown, order = np.full(shape, NO_CELL, np.uint32), np.zeros(shape, np.uint32)
    disc = _make_disc(diameter * fine / 2)
    for start in range(0, len(places), SLICE_CELLS):
        part = slice(start, start + SLICE_CELLS)
        pixels = grid.find_pixels(places[part]) * np.float32(fine)
        hashes = (mix64(np.arange(start, start + len(pixels)), 0) >> np.uint64(34)).astype(np.uint32)
        if layers is not None:
            hashes |= layers[part].astype(np.uint32) << np.uint32(30)
        _draw(pixels, hashes, start, disc, shown, order)
    return shown


def thin_cells(grid: PixelGrid, places: np.ndarray) -> np.ndarray:
    """Ascending int64: one cell, at random, of those whose place is in the same pixel."""
    shown = draw_points(grid, places, 0.0, fine=1)
    return np.unique(shown[shown != NO_CELL]).astype(np.int64)


def paint(shown: np.ndarray, colours: np.ndarray, fine: int = FINE) -> np.ndarray:
    """A picture, uint8 [height, width, 4], transparent where no cell is.

    shown    as from `draw_points`
    colours  uint8 [cells, 3]
    """
    height, width = shown.shape[0] // fine, shown.shape[1] // fine
    picture = np.zeros((height, width, 4), np.uint8)
    rows = max(2**20 // (width * fine), 1)
    for start in range(0, height, rows):
        part = shown[start * fine : (start + rows) * fine]
        there = part != NO_CELL
        found = np.zeros((*part.shape, 3), np.float32)
        found[there] = colours[part[there]]
        blocks = len(part) // fine, fine, width, fine
        n = there.reshape(blocks).sum(axis=(1, 3))
        sums = found.reshape(*blocks, 3).sum(axis=(1, 3))
        picture[start : start + rows, :, :3] = np.rint(sums / np.maximum(n, 1)[..., None])
        picture[start : start + rows, :, 3] = np.rint(255 * n / fine**2)
    return picture


def _make_disc(radius: float) -> np.ndarray:
    """int64 [pixels, 2]: steps from the middle pixel to all pixels whose centre is in the disc."""
    reach = int(radius)
    steps = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1).T
    inside = (steps**2).sum(axis=1) <= max(radius, 0.5) ** 2
    return np.ascontiguousarray(steps[inside | (steps == 0).all(axis=1)])


@njit(nogil=True, cache=True)
def _draw(
    pixels: np.ndarray, hashes: np.ndarray, first: int, disc: np.ndarray, shown: np.ndarray, order: np.ndarray
) -> None:
    height, width = shown.shape
    for cell in range(len(pixels)):
        x, y, own = pixels[cell, 0], pixels[cell, 1], hashes[cell]
        if not (np.isfinite(x) and np.isfinite(y)):
            continue
        column, row = int(np.floor(x)), int(np.floor(y))
        for step in range(len(disc)):
            i, j = row + disc[step, 0], column + disc[step, 1]
            if 0 <= i < height and 0 <= j < width and (own >= order[i, j]):
                order[i, j], shown[i, j] = own, first + cell
