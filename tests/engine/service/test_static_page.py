import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from atlasvi.engine.cli.commands import app
from atlasvi.engine.minified.minified_store import MinifiedStore
from atlasvi.engine.service import tile_columns
from atlasvi.engine.service.page_answers import PAGE
from atlasvi.engine.service.static_page import write_static_page
from atlasvi.engine.service.tiles import open_tiles
from atlasvi.loaders.errors import ColumnError, OutputError
from tests.engine.service.embedded import copy_with_points


@pytest.fixture
def store(forms: Path, tmp_path: Path) -> MinifiedStore:
    return copy_with_points(forms / "x.mini", tmp_path)


def test_the_command_writes_the_page_with_points_columns_and_names(store: MinifiedStore, tmp_path: Path):
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["serve", store.path, "--static", str(out)])
    assert done.exit_code == 0, done.output
    assert "any web server" in done.output
    assert all((out / file.name).read_bytes() == file.read_bytes() for file in PAGE.iterdir())
    index = json.loads((out / "tiles/index.json").read_text())
    assert index["service"] is False
    assert [column["name"] for column in index["columns"]] == store.obs_columns
    tiles, number = open_tiles(store), store.obs_columns.index("cell_type")
    np.testing.assert_array_equal(
        np.frombuffer((out / "tiles/points/0").read_bytes(), "<u2"), tiles.read_points(0).ravel()
    )
    column = json.loads((out / f"tiles/columns/{number}.json").read_text())
    codes = np.frombuffer((out / f"tiles/columns/{number}/0").read_bytes(), column["dtype"])
    values = store.read_column("cell_type").iloc[tiles.cells]
    assert [column["categories"][code] for code in codes] == list(values)
    assert json.loads((out / "tiles/names/0.json").read_text()) == list(store.read_names()[tiles.cells])


def test_options_of_serving_are_refused_where_nothing_is_served(store: MinifiedStore, tmp_path: Path):
    done = CliRunner().invoke(app, ["serve", store.path, "--static", str(tmp_path / "out"), "--port", "80"])
    assert isinstance(done.exception, ValueError)
    assert "port" in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_chosen_columns_and_no_names_make_a_smaller_folder(store: MinifiedStore, tmp_path: Path):
    write_static_page(store, open_tiles(store), tmp_path / "out", ["batch"], names=False)
    index = json.loads((tmp_path / "out/tiles/index.json").read_text())
    assert [column["name"] for column in index["columns"]] == ["batch"]
    assert index["first"] == store.obs_columns.index("batch")
    assert not (tmp_path / "out/tiles/names").exists()


def test_a_column_with_too_many_values_is_left_out_and_said_and_refused_where_it_was_chosen(
    store: MinifiedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tile_columns, "MOST_CATEGORIES", 1)
    (first, *_) = write_static_page(store, open_tiles(store), tmp_path / "out")
    assert "more than 1 different values" in first
    with pytest.raises(ValueError, match="'batch' has more than 1"):
        write_static_page(store, open_tiles(store), tmp_path / "other", ["batch"])
    assert not (tmp_path / "other").exists()


def test_a_folder_that_is_there_is_kept_and_an_unknown_column_is_refused(store: MinifiedStore, tmp_path: Path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        write_static_page(store, open_tiles(store), tmp_path / "out")
    with pytest.raises(ColumnError, match="cell_type"):
        write_static_page(store, open_tiles(store), tmp_path / "other", ["celltype"])


def test_a_store_without_coordinates_says_which_command_makes_them(forms: Path, tmp_path: Path):
    done = CliRunner().invoke(app, ["serve", str(forms / "x.mini"), "--static", str(tmp_path / "out")])
    assert isinstance(done.exception, Exception)
    assert "atlasvi embed MINI" in str(done.exception)
    assert not (tmp_path / "out").exists()
