"""The page of an atlas as a folder that any web server hosts: points and columns, without what the model computes."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atlasvi.engine.minified.kept_posterior import KeptPosterior
from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.engine.service.page_answers import PAGE, AtlasPage
from atlasvi.engine.service.tiles import Progress, Tiles
from atlasvi.loaders.outputs import write_folder_aside
from atlasvi.loaders.tables.store_tables import check_column

LEFT_OUT = (
    "This page is a folder of files. Expression of genes, markers and neighbours need the model: "
    "atlasvi serve shows them too."
)


def write_static_page(
    store: KeptPosterior,
    tiles: Tiles,
    out: str | Path,
    columns: Sequence[str] | None = None,
    names: bool = True,
    progress: Progress = lambda stage, done, total: None,
) -> list[str]:
    """Write the page and its tiles to a new folder; returns a sentence for each column that was left out.

    columns  the columns to colour by; None: all but those with too many different values
    names    whether the names of the cells are in it, 10 to 30 bytes a cell: for the search, and for saved cells
    Raises ColumnError if a column does not exist, QueryError if a chosen one has too many values, OutputError if `out`
    exists or can't be written.
    """
    for name in columns or ():
        check_column(name, store.obs_columns, store.path)
    page = AtlasPage(store, tiles)
    left_out: list[str] = []
    written: list[dict[str, Any]] = []
    with write_folder_aside(out) as scratch:
        folder = scratch / "result"
        shutil.copytree(PAGE, folder)
        wanted = range(len(page.columns)) if columns is None else map(page.columns.index, columns)
        for number in wanted:
            try:
                described = page.describe_column(number)
            except QueryError as error:
                if columns is not None:
                    raise
                left_out.append(str(error))
                continue
            _write_json(folder / f"tiles/columns/{number}.json", described)
            written.append({"number": number, "name": page.columns[number]})
        index = page.describe(service=False)
        numbers: list[int] = [column["number"] for column in written]
        index |= {"columns": written, "names": names, "left_out": LEFT_OUT}
        index["first"] = index["first"] if index["first"] in numbers else (numbers[0] if numbers else None)
        _write_json(folder / "tiles/index.json", index)
        for number in numbers:  # one after the other: the codes of a few columns are kept in memory
            for tile in range(tiles.n_tiles):
                _write(folder / f"tiles/columns/{number}/{tile}", page.read_codes(number, tile))
        for tile in range(tiles.n_tiles):
            _write(folder / f"tiles/points/{tile}", page.read_points(tile))
            if names:
                _write_json(folder / f"tiles/names/{tile}.json", page.read_names(tile))
            progress("writing tiles", tiles.index.starts[tile + 1], tiles.index.starts[-1])
    return left_out


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def _write_json(file: Path, value: object) -> None:
    _write(file, json.dumps(value, allow_nan=False).encode())
