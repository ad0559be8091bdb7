"""What the page of an atlas asks its server besides the questions of `api/`: tiles, colours, single cells.

`AtlasPage` knows nothing of HTTP: `page_routes` answers with it, and `static_page` writes what it says into files.
"""

from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd

from atlasvi.engine.minified.kept_posterior import KeptPosterior
from atlasvi.engine.neighbours.index_file import IndexFile
from atlasvi.engine.queries.cell_choice import name_some
from atlasvi.engine.queries.expression import slice_expression
from atlasvi.engine.queries.neighbours import NeighbourSearch, SearchOptions
from atlasvi.engine.queries.opened_question import OpenedQuestion
from atlasvi.engine.queries.question_cells import MinifiedCells, QueryError
from atlasvi.engine.service.tile_columns import SCALED_TO, TileColumn, decode_tile, read_column
from atlasvi.engine.service.tiles import Tiles
from atlasvi.loaders.errors import SourceError

PAGE = Path(__file__).with_name("page")
"""The page as `npm run build` writes it, from the sources in the folder `page` of the repository."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The content security policy of the page: nothing from elsewhere, and no script in the page itself."""

COLUMNS_KEPT = 16  # opened: their files are mapped into memory
DECODED_KEPT = 256  # tiles of genes in memory: 34 MB
DESCRIBED = (
    "name",
    "identity",
    "kind",
    "dtype",
    "missing",
    "n_missing",
    "categories",
    "counts",
    "low",
    "high",
    "shown",
)
"""What the page is told of a column."""


class AtlasPage:
    """The tiles of a store, and what the page shows of its cells. Methods may be called from many threads."""

    def __init__(self, store: KeptPosterior, tiles: Tiles) -> None:
        self.store, self.tiles = store, tiles
        self.columns = list(store.obs_columns)
        self._read_column = lru_cache(COLUMNS_KEPT)(lambda name: read_column(tiles, store, name))
        self._decoded: dict[tuple[str, int], bytes] = {}
        self._lock = Lock()

    def describe(self, service: bool = True) -> dict[str, Any]:
        """tiles/index.json: the levels and boxes of the tiles, and the columns by number.

        service  whether the page may ask for what is computed: genes, markers, neighbours
        """
        index = self.tiles.index
        return {
            "name": Path(self.store.path).name.removesuffix(".mini"),
            "n_cells": self.store.n_cells,
            "identity": index.identity,
            "levels": index.levels,
            "starts": index.starts,
            "boxes": index.boxes,
            "columns": [{"number": number, "name": name} for number, name in enumerate(self.columns)],
            "first": self._choose_first(),
            "service": service,
        }

    def _choose_first(self) -> int | None:
        """The number of the column that the page shows first: the labels of the model, or the first with categories."""
        try:
            labels = self.store.setup.keys.labels_key
        except SourceError:  # minified data without its model
            labels = None
        if labels in self.columns:
            return self.columns.index(labels)
        for number, name in enumerate(self.columns):
            if isinstance(self.store.read_column(name, 0, 0).dtype, pd.CategoricalDtype):
                return number
        return None

    def name_column(self, number: int) -> str:
        """The name of a column. Raises QueryError if there is none of this number."""
        if not 0 <= number < len(self.columns):
            raise QueryError(f"there is no column {number}: there are {len(self.columns)}, the first is 0.")
        return self.columns[number]

    def describe_column(self, number: int) -> dict[str, Any]:
        """tiles/columns/NUMBER.json: how to read the codes of a column, with literals for conditions on it."""
        column, _ = self._read_column(self.name_column(number))
        return {key: getattr(column, key) for key in DESCRIBED} | {"literals": _list_literals(self.store, column)}

    def read_codes(self, number: int, tile: int) -> bytes:
        """tiles/columns/NUMBER/TILE: codes of a column in a tile, little-endian."""
        column, codes = self._read_column(self.name_column(number))
        return codes[self.tiles.find_tile(tile)].astype(f"<{np.dtype(column.dtype).str[1:]}").tobytes()

    def read_points(self, tile: int) -> bytes:
        """tiles/points/TILE: uint16 x and y of each point, little-endian."""
        return self.tiles.read_points(tile).astype("<u2").tobytes()

    def read_names(self, tile: int) -> list[str]:
        """tiles/names/TILE.json: the names of the cells of a tile."""
        wanted, places = np.unique(self.tiles.read_cells(tile).astype(np.int64), return_inverse=True)
        names = self.store.take_names(wanted)
        return [str(name) for name in names[places]]

    def read_gene(self, opened: OpenedQuestion, gene: str, tile: int) -> bytes:
        """tiles/genes/TILE?gene=NAME: codes of the decoded expression (see `decode_tile`), little-endian."""
        self.tiles.find_tile(tile)
        with self._lock:
            if (gene, tile) in self._decoded:
                return self._decoded[gene, tile]

        def decode(cells: np.ndarray, name: str) -> np.ndarray:
            parts = slice_expression(opened.run, opened.cells, cells, genes=[name], library_size=float(SCALED_TO))
            return np.concatenate([values[:, 0] for _, values in parts])

        content = decode_tile(self.tiles, tile, gene, decode).astype("<u2").tobytes()
        with self._lock:
            self._decoded[gene, tile] = content
            while len(self._decoded) > DECODED_KEPT:
                del self._decoded[next(iter(self._decoded))]
        return content

    def tell_point(self, tile: int, place: int) -> dict[str, Any]:
        """tiles/cells/TILE/PLACE: the cell of a point."""
        cells = self.tiles.read_cells(tile)
        if not 0 <= place < len(cells):
            raise QueryError(f"tile {tile} has no point {place}: it has {len(cells):,}, the first is 0.")
        return self.tell_cells(np.array([cells[place]], np.int64))[0]

    def tell_named(self, name: str) -> dict[str, Any]:
        """tiles/cell?name=NAME: the cell of this name; the first one, if several have it."""
        found, _ = self.store.find_named([name])
        if not len(found):
            raise QueryError(
                f"{self.store.path}: no gene, column or cell has the name {name!r} "
                f"(cells are {name_some(list(map(str, self.store.read_names(0, min(3, self.store.n_cells)))), 3)})."
            )
        return self.tell_cells(found[:1])[0]

    def tell_cells(self, cells: np.ndarray) -> list[dict[str, Any]]:
        """Index, name, coordinates (None: they are missing) and values of obs of cells, int64 in any order."""
        wanted, places = np.unique(cells, return_inverse=True)
        names, points = self.store.take_names(wanted), self.store.read_embedding(wanted)
        is_placed = np.isfinite(points).all(1)
        columns = {name: [_show(value) for value in self.store.take_column(name, wanted)] for name in self.columns}
        return [
            {
                "cell": int(wanted[k]),
                "name": str(names[k]),
                "x": float(points[k, 0]) if is_placed[k] else None,
                "y": float(points[k, 1]) if is_placed[k] else None,
                "values": [(name, values[k]) for name, values in columns.items()],
            }
            for k in places.tolist()
        ]

    def tell_neighbours(
        self, cells: MinifiedCells, cell: int, k: int, index: IndexFile | None = None
    ) -> dict[str, list[dict[str, Any]]]:
        """tiles/neighbours/CELL?k=K: the nearest cells in latent space, nearest first.

        cells  the cells of the store for one question
        index  the index of neighbours, if it is opened already
        """
        if not 0 <= cell < self.store.n_cells:
            raise QueryError(f"there is no cell {cell}: there are {self.store.n_cells:,}, the first is 0.")
        search = NeighbourSearch(cells, SearchOptions(k), index=index)
        own = np.array([cell], np.int64)
        distances, near = (values[0] for values in search.search(*self.store.take_latent(own), own))
        found = self.tell_cells(near[near >= 0])
        return {"neighbours": [{**one, "distance": float(far)} for one, far in zip(found, distances)]}


def _list_literals(store: KeptPosterior, column: TileColumn) -> list[str]:
    """The categories as they are written in a condition on the column."""
    if column.kind != "categories":
        return []
    dtype = store.read_column(column.name, 0, 0).dtype
    values = dtype.categories.dtype if isinstance(dtype, pd.CategoricalDtype) else dtype
    is_plain = getattr(values, "numpy_dtype", values).kind in "biuf"
    return [name if is_plain else repr(name) for name in column.categories]


def _show(value: Any) -> str | None:
    """A value of obs as text; None where it is missing."""
    if pd.isna(value):
        return None
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)
