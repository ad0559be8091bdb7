from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.engine.service import tile_columns
from atlasvi.engine.service.tile_columns import TileColumn, decode_tile, find_range, read_column, to_codes
from atlasvi.engine.service.tiles import Tiles, open_tiles
from atlasvi.loaders.errors import ColumnError, SourceError
from atlasvi.loaders.manifest import read_json, write_json
from tests.engine.service.embedded import EmbeddedCells, draw_points

N_CELLS = 400


def make_store(folder: Path, **columns: Any) -> tuple[Tiles, Any]:
    store = EmbeddedCells(folder, draw_points(N_CELLS), pd.DataFrame(columns))
    return open_tiles(store), store


def read(folder: Path, values: Any) -> tuple[TileColumn, np.ndarray]:
    """A column, with its codes in the order of the store."""
    tiles, store = make_store(folder, column=values)
    column, codes = read_column(tiles, store, "column")
    back = np.empty(N_CELLS, codes.dtype)
    back[tiles.cells] = codes
    return column, back


def test_categories_keep_their_order_and_missing_values_have_the_last_code(tmp_path: Path):
    values = pd.Categorical.from_codes(np.resize([-1, 0, 2, -1], N_CELLS), ["B", "unused", "A"])
    column, codes = read(tmp_path, values)
    assert (column.kind, column.dtype, column.categories, column.missing) == ("categories", "uint8", ["B", "A"], 255)
    np.testing.assert_array_equal(codes, np.resize([255, 0, 1, 255], N_CELLS))
    assert column.counts == [100, 100]
    assert column.n_missing == 200


@pytest.mark.parametrize(
    ("values", "categories"),
    [
        (np.arange(N_CELLS) % 3 == 0, ["False", "True"]),
        (np.arange(N_CELLS) % 3 + 7, ["7", "8", "9"]),
        (np.array(["x", "y"])[np.arange(N_CELLS) % 2], ["x", "y"]),
    ],
    ids=["truth", "few whole numbers", "text"],
)
def test_truth_few_whole_numbers_and_text_are_categories(tmp_path: Path, values: np.ndarray, categories: list[str]):
    column, codes = read(tmp_path, values)
    assert column.categories == categories
    assert [column.categories[code] for code in codes] == [str(value) for value in values]


def test_more_than_255_categories_have_codes_of_two_bytes(tmp_path: Path):
    column, codes = read(tmp_path, pd.Categorical([f"{k:03}" for k in range(N_CELLS)]))
    assert column.dtype == "uint16"
    np.testing.assert_array_equal(codes, np.arange(N_CELLS))


def test_numbers_are_65535_steps_and_what_is_not_finite_is_missing(tmp_path: Path):
    values = np.linspace(-5, 20, N_CELLS)
    values[:2] = np.nan, np.inf
    column, codes = read(tmp_path, values)
    assert (column.kind, column.low, column.high, column.n_missing) == ("numbers", values[2], 20, 2)
    assert codes[0] == codes[1] == column.missing == 65535
    back = column.low + codes[2:] * (column.high - column.low) / 65534
    np.testing.assert_allclose(back, values[2:], atol=25 / 65534)


def test_many_whole_numbers_are_numbers(tmp_path: Path):
    column, _ = read(tmp_path, np.arange(N_CELLS))
    assert (column.kind, column.low, column.high) == ("numbers", 0, N_CELLS - 1)


def test_a_column_of_one_number_and_one_without_any_are_shown(tmp_path: Path):
    for values, n_missing in ((np.full(N_CELLS, 2.5), 0), (np.full(N_CELLS, np.nan), N_CELLS)):
        folder = tmp_path / str(n_missing)
        folder.mkdir()
        column, _ = read(folder, values)
        assert (column.kind, column.n_missing) == ("numbers", n_missing)
        assert column.low == column.high


def test_a_few_extremes_do_not_take_the_range_of_colours():
    counts = np.zeros(65535, np.int64)
    counts[:100], counts[-1] = 10, 5
    assert find_range(counts, 0.0, 65534.0) == (1.0, 99.0)


def test_a_name_of_every_cell_is_refused_and_a_missing_column_names_those_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tile_columns, "MOST_CATEGORIES", 300)
    tiles, store = make_store(
        tmp_path, barcode=[f"AAC{k}" for k in range(N_CELLS)], many=pd.Categorical(range(N_CELLS))
    )
    for name in store.obs_columns:
        with pytest.raises(QueryError, match="more than 300 different values"):
            read_column(tiles, store, name)
    with pytest.raises(ColumnError, match="barcode"):
        read_column(tiles, store, "barcodes")


def test_a_column_that_has_changed_is_read_again(tmp_path: Path):
    tiles, store = make_store(tmp_path, column=np.zeros(N_CELLS))
    assert read_column(tiles, store, "column")[0].high == 0
    store.obs["column"] = np.ones(N_CELLS)
    assert read_column(tiles, store, "column")[0].high == 1


def test_a_column_that_was_cut_short_is_written_again_and_one_of_a_newer_format_refused(tmp_path: Path):
    tiles, store = make_store(tmp_path, column=np.arange(N_CELLS) / 7)
    expected = np.array(read_column(tiles, store, "column")[1])
    body = next((tiles.folder / "columns").glob("*.bin"))
    body.write_bytes(body.read_bytes()[:-3])
    np.testing.assert_array_equal(read_column(tiles, store, "column")[1], expected)
    head = body.with_suffix(".json")
    write_json(head, {**read_json(head), "format_version": 2})
    with pytest.raises(SourceError, match="of format 2, and this atlasvi reads up to 1"):
        read_column(tiles, store, "column")


def test_a_column_that_can_not_be_kept_is_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    tiles, store = make_store(tmp_path, column=np.arange(N_CELLS) % 3)
    (tiles.folder / "columns").write_text("a file, so that no folder can be made")
    column, codes = read_column(tiles, store, "column")
    np.testing.assert_array_equal(codes, tiles.cells % 3)
    assert column.categories == ["0", "1", "2"]
    assert "can't be written" in caplog.text


def test_columns_with_strange_names_have_files_of_their_own(tmp_path: Path):
    names = ["a/b", "../a", "a b", ""]
    tiles, store = make_store(tmp_path, **{name: np.full(N_CELLS, k) for k, name in enumerate(names)})
    assert [read_column(tiles, store, name)[0].categories for name in names] == [["0"], ["1"], ["2"], ["3"]]
    assert not (tmp_path / "a").exists()


def test_a_decoded_gene_is_log1p_of_counts_per_10000_in_the_order_of_the_tile(tmp_path: Path):
    tiles, _ = make_store(tmp_path)
    asked = []

    def decode(cells: np.ndarray, gene: str) -> np.ndarray:
        asked.append((cells, gene))
        return cells.astype(np.float32)

    codes = decode_tile(tiles, 0, "CD19", decode)
    np.testing.assert_array_equal(asked[0][0], np.arange(N_CELLS))
    expected = to_codes(np.log1p(tiles.read_cells(0).astype(np.float32)), 0.0, np.log1p(10_000))
    np.testing.assert_array_equal(codes, expected)
    assert expected.max() == round(np.log1p(N_CELLS - 1) / np.log1p(10_000) * 65534)
