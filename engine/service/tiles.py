"""The cells of a store as points of a page: tiles, by level, in a folder that is built once.

    MINI.tiles/                  beside the store, or in the user's cache if that can't be written
      index.json                 format version, sizes, identity of the coordinates, where tiles begin, their boxes
      points.bin                 uint16 [cells, 2]: coordinates within the box of the tile, 0 to 65,535
      cells.bin                  uint32 [cells]: which cell of the store each point is
      manifest.json              bytes and checksums of these files
      columns/<hash>.json, .bin  a column of obs as codes in the order of the points; written when it is first shown

The points of all tiles follow each other, level by level (see tile_order.py): a page draws the first levels of the
tiles that it shows, and has a picture of the whole. A point is at most 1 / 131,070 of its tile's box from its cell.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import google_crc32c
import numpy as np

from atlasvi.engine.neighbours.index_file import identify_files
from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.engine.service.tile_order import count_levels, count_tiles, mark_inside, order_keys
from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import OutputError, SourceError
from atlasvi.loaders.manifest import check_files, read_json, read_manifest, write_json, write_manifest
from atlasvi.loaders.outputs import write_folder_aside
from atlasvi.loaders.places.object_path import ObjectPath, to_place
from atlasvi.loaders.store_files import check_version

FORMAT_VERSION = 1
INDEX = "index.json"
SLICE_CELLS = 2**17  # coordinates read at a time
GROUP_CELLS = 2**24  # cells sorted at a time: 400 MB
BUCKET_BITS = 10  # of the 32 that a place on the curve has: cells are counted by these
MOST_CELLS = 2**32
MOST_CORNERS = 2_000  # of a polygon
IDENTITY_SLICES, IDENTITY_ROWS, TAIL_BYTES = 64, 64, 16
WITHOUT = np.uint64(0xFFFFFFFFFFFFFFFF)

Progress = Callable[[str, int, int], None]
"""Told the stage, how many cells are done, and of how many."""


class Embedded(Protocol):
    """A store whose cells have two coordinates."""

    path: str
    n_cells: int

    def read_embedding(self, rows: slice) -> np.ndarray:
        """float32 [cells, 2]: the coordinates of these cells."""


@dataclass(frozen=True)
class TileIndex:
    """What is known of tiles without their points.

    n_cells   of the store
    identity  of the coordinates (see `identify_embedding`)
    levels    [levels + 1]: the first tile of each level, and the number of tiles
    starts    [tiles + 1]: the first point of each tile, and the number of points
    boxes     [tiles]: smallest x and y, largest x and y of the points of each tile
    """

    n_cells: int
    identity: str
    levels: list[int]
    starts: list[int]
    boxes: list[tuple[float, float, float, float]]


def name_tiles(path: str | Path) -> Path:
    """Where the tiles of a store are built: beside it, or in the user's cache if that folder can't be written.

    Of a store in a bucket they are in the working folder, as its index is.
    """
    place = to_place(path)
    path = Path(place.name).absolute() if isinstance(place, ObjectPath) else place.absolute()
    beside = path.with_name(f"{path.name}.tiles")
    if beside.is_dir() or os.access(path.parent, os.W_OK):
        return beside
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "atlasvi" / f"{path.name}.{google_crc32c.value(str(path).encode()):08x}.tiles"


def identify_embedding(store: Embedded) -> str:
    """Text that other coordinates do not have, nor older ones of this store: of the content of some slices."""
    checksum = google_crc32c.Checksum(str(store.n_cells).encode())
    for start in np.linspace(0, max(store.n_cells - IDENTITY_ROWS, 0), IDENTITY_SLICES).astype(int).tolist():
        stop = min(start + IDENTITY_ROWS, store.n_cells)
        checksum.update(np.ascontiguousarray(store.read_embedding(slice(start, stop)), "<f4").tobytes())
    checksum.update(identify_files(store.path, ["obsm/X_umap/"]))
    return checksum.hexdigest().decode()


def build_tiles(
    store: Embedded, out: str | Path | None = None, progress: Progress = lambda stage, done, total: None
) -> Path:
    """Write the tiles of a store's coordinates to a new folder, `out` (default: see `name_tiles`); returns the folder.

    Out of core: the coordinates are read once for their range, once to count, and once for every 16 million cells,
    which are sorted in memory. Cells whose coordinates are missing have no point.
    Raises SourceError if no cell has coordinates, OutputError if `out` exists or can't be written.
    """
    out = name_tiles(store.path) if out is None else Path(out)
    if not 0 < store.n_cells < MOST_CELLS:
        raise SourceError(f"{store.path}: it has {store.n_cells:,} cells; tiles are of 1 to {MOST_CELLS - 1:,}.")
    low, scale = _measure(store, progress)
    n_levels = count_levels(store.n_cells)
    counts = _count(store, low, scale, n_levels, progress)
    with write_folder_aside(out) as scratch:
        folder = scratch / "result"
        folder.mkdir()
        total, starts, levels = int(counts.sum()), [0], [0]
        for size in counts.sum(1).tolist():
            edges = np.linspace(0, size, count_tiles(size) + 1).astype(int)
            starts += (starts[-1] + edges[1:]).tolist() if len(edges) > 1 else []
            levels.append(len(starts) - 1)
        cells = np.memmap(folder / "cells.bin", np.uint32, "w+", shape=(total,))
        exact = np.memmap(scratch / "exact.bin", np.float32, "w+", shape=(total, 2))
        _sort(store, low, scale, counts.ravel(), cells, exact, progress)
        boxes = _quantise(exact, starts, folder / "points.bin")
        cells.flush()
        index = TileIndex(store.n_cells, identify_embedding(store), levels, starts, boxes)
        write_json(folder / INDEX, {"format_version": FORMAT_VERSION, **asdict(index)})
        write_manifest(folder)
    return out


def _slice(store: Embedded) -> Iterator[tuple[int, np.ndarray]]:
    """(first cell, coordinates float32 [cells, 2]) of all cells."""
    for start in range(0, store.n_cells, SLICE_CELLS):
        part = store.read_embedding(slice(start, min(start + SLICE_CELLS, store.n_cells)))
        yield start, np.ascontiguousarray(part, np.float32)


def _measure(store: Embedded, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    """Smallest coordinates, and steps of the curve for a unit of them, float64 [2] each."""
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for start, part in _slice(store):
        known = part[np.isfinite(part).all(1)]
        if len(known):
            low, high = np.minimum(low, known.min(0)), np.maximum(high, known.max(0))
        progress("measuring the picture", start + len(part), store.n_cells)
    if not np.isfinite(low).all():
        raise SourceError(f"{store.path}: no cell has coordinates: make them again with atlasvi embed MINI.")
    side = max(
        float((high - low).max()), float(np.finfo(np.float32).tiny)
    )  # the same for x and y: squares stay squares
    return low.astype(np.float64), np.full(2, 2**16 / side)


def _count(store: Embedded, low: np.ndarray, scale: np.ndarray, n_levels: int, progress: Progress) -> np.ndarray:
    """int64 [levels, buckets]: cells of each level in each stretch of the curve."""
    buckets = 2**BUCKET_BITS
    counts = np.zeros(n_levels * buckets, np.int64)
    for start, part in _slice(store):
        keys = order_keys(part, start, store.n_cells, low, scale)
        counts += np.bincount(_find_buckets(keys[keys != WITHOUT]), minlength=len(counts))
        progress("counting cells", start + len(part), store.n_cells)
    return counts.reshape(n_levels, buckets)


def _find_buckets(keys: np.ndarray) -> np.ndarray:
    return (keys >> np.uint64(32 - BUCKET_BITS)).astype(np.int64)


def _sort(
    store: Embedded,
    low: np.ndarray,
    scale: np.ndarray,
    counts: np.ndarray,
    cells: np.ndarray,
    exact: np.ndarray,
    progress: Progress,
) -> None:
    """Write the cells and their coordinates in the order of their keys, in groups that fit in memory."""
    ends, first, at = np.cumsum(counts), 0, 0
    while at < len(cells):
        last = max(int(np.searchsorted(ends, at + GROUP_CELLS, "right")), first + 1)  # buckets [first, last)
        size = int(ends[last - 1]) - at
        keys, rows, points = np.empty(size, np.uint64), np.empty(size, np.uint32), np.empty((size, 2), np.float32)
        filled = 0
        for start, part in _slice(store):
            here = order_keys(part, start, store.n_cells, low, scale)
            buckets = _find_buckets(here)
            wanted = np.flatnonzero((buckets >= first) & (buckets < last) & (here != WITHOUT))
            there = slice(filled, filled + len(wanted))
            keys[there], rows[there], points[there] = here[wanted], start + wanted, part[wanted]
            filled += len(wanted)
            progress("sorting cells", at + filled, len(cells))
        order = np.argsort(keys, kind="stable")
        cells[at : at + size], exact[at : at + size] = rows[order], points[order]
        first, at = last, at + size


def _quantise(exact: np.ndarray, starts: list[int], file: Path) -> list[tuple[float, float, float, float]]:
    """Write the coordinates of each tile as uint16 in its box; returns the boxes."""
    points, boxes = np.memmap(file, np.uint16, "w+", shape=exact.shape), []
    for start, stop in pairwise(starts):
        here = exact[start:stop].astype(np.float64)
        low, high = here.min(0), here.max(0)
        size = np.where(high > low, high - low, 1)
        points[start:stop] = np.rint((here - low) / size * 65535)
        boxes.append((float(low[0]), float(low[1]), float(high[0]), float(high[1])))
    points.flush()
    return boxes


class Tiles:
    """The tiles in a folder, opened without reading the points.

    Raises SourceError if they are damaged, of a newer format, or of other coordinates than the store's.
    """

    def __init__(self, folder: str | Path, store: Embedded) -> None:
        self.folder, self.store = Path(folder), store
        record = read_json(self.folder / INDEX, older=False)
        check_version(str(folder), "folder of tiles", record, FORMAT_VERSION)
        with reading(str(folder)):
            files = read_manifest(self.folder)
            if files is None:
                raise SourceError(f"{folder}: its manifest.json is missing: remove the folder, and it is built again.")
            check_files(self.folder, files, lambda name: name == INDEX)
            self.index = TileIndex(**{name: record[name] for name in TileIndex.__dataclass_fields__})
            total = self.index.starts[-1]
            self.cells = np.memmap(self.folder / "cells.bin", np.uint32, "r", shape=(total,))
            self._points = np.memmap(self.folder / "points.bin", np.uint16, "r", shape=(total, 2))
        if self.index.identity != identify_embedding(store):
            raise OtherTiles(f"{folder}: these tiles are of other coordinates than those that {store.path} has now.")

    @property
    def n_tiles(self) -> int:
        """Number of tiles of all levels."""
        return len(self.index.boxes)

    def find_tile(self, number: int) -> slice:
        """Where the points of a tile are. Raises QueryError if there is no such tile."""
        if not 0 <= number < self.n_tiles:
            raise QueryError(f"there is no tile {number}: there are {self.n_tiles:,}, the first is 0.")
        return slice(self.index.starts[number], self.index.starts[number + 1])

    def read_points(self, number: int) -> np.ndarray:
        """uint16 [points, 2]: coordinates in the box of a tile."""
        return self._points[self.find_tile(number)]

    def read_cells(self, number: int) -> np.ndarray:
        """uint32 [points]: the cells of a tile."""
        return self.cells[self.find_tile(number)]

    def place_points(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """x and y, float64 [points], of the points of a tile, as the page draws them."""
        x0, y0, x1, y1 = self.index.boxes[number]
        points = self.read_points(number)
        return x0 + points[:, 0] * ((x1 - x0) / 65535), y0 + points[:, 1] * ((y1 - y0) / 65535)

    def find_inside(self, polygon: Any) -> np.ndarray:
        """Ascending int64 indices of the cells whose points are in a polygon, [corners, 2] (the last joins the first).

        Raises QueryError if it is no polygon.
        """
        try:
            corners = np.array(polygon, np.float64)
        except (TypeError, ValueError):
            corners = np.empty(0)
        if corners.ndim != 2 or corners.shape[1] != 2 or not 3 <= len(corners) <= MOST_CORNERS:
            raise QueryError(f"a polygon is a list of 3 to {MOST_CORNERS:,} corners, each a list of two numbers.")
        if not np.isfinite(corners).all():
            raise QueryError("a corner of the polygon is not a finite number.")
        (left, lower), (right, upper) = corners.min(0), corners.max(0)
        found = [np.empty(0, np.uint32)]
        for number, (x0, y0, x1, y1) in enumerate(self.index.boxes):
            if x0 <= right and x1 >= left and y0 <= upper and y1 >= lower:
                found.append(self.read_cells(number)[mark_inside(*self.place_points(number), corners)])
        return np.sort(np.concatenate(found)).astype(np.int64)


class OtherTiles(SourceError):
    """Tiles of other coordinates than the store's."""


def open_tiles(store: Embedded, progress: Progress = lambda stage, done, total: None) -> Tiles:
    """The tiles of a store; they are built first if there are none, or if the store has other coordinates now.

    Raises SourceError if they are damaged or no cell has coordinates, OutputError if they can't be written.
    """
    folder = name_tiles(store.path)
    if (folder / INDEX).is_file():
        try:
            return Tiles(folder, store)
        except OtherTiles:
            shutil.rmtree(folder)
    if folder.exists():
        raise OutputError(f"{folder} is where the tiles of the page are built, and something else is there: move it.")
    return Tiles(build_tiles(store, folder, progress), store)
