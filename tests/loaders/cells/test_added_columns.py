"""Columns added to obs of a finished store."""

import os
import shutil
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from atlasvi.loaders.cells import added_columns as module
from atlasvi.loaders.cells.added_columns import add_obs_columns, read_table
from atlasvi.loaders.cells.cell_store import CellStore
from atlasvi.loaders.errors import ColumnError, OutputError, SourceError
from atlasvi.loaders.ingestion.ingest import ingest
from atlasvi.loaders.store_files import read_attributes
from tests.loaders.conftest import make_counts, write_counts
from tests.loaders.tables.test_merged_columns import to_plain

N = 30


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    ingest(write_counts(folder, "a", make_counts(N, 5)), folder / "store", workers=1)
    return folder / "store"


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Path:
    """A store of this test's own, which it may change."""
    return shutil.copytree(built, tmp_path / "store")


def clusters(names: list[str] | pd.Index) -> pd.DataFrame:
    """A column of each kind that says the cell's number in another way, in another order than the store."""
    numbers = np.array([int(name.split("_")[1]) for name in names])
    return pd.DataFrame(
        {
            "leiden": pd.Categorical([f"c{k % 4}" for k in numbers]),
            "G1/S": numbers / 2,
            "id": pd.array([2**60 + k if k % 3 else None for k in numbers.tolist()], "Int64"),
            "remark": [f"n{k % 2}" for k in numbers],
        },
        index=names,
    )


def test_columns_are_put_beside_the_cells_of_the_same_names(store: Path):
    before = CellStore(store).read_obs(0, N)
    table = clusters([f"a_{k}" for k in range(N)])
    assert add_obs_columns(store, table) == ["leiden", "G1/S", "id", "remark"]
    opened = CellStore(store)
    expected = clusters(before.index)
    for found in (opened.read_obs(0, N), anndata.read_zarr(store).obs):
        assert found.columns.tolist() == [*before.columns, *table.columns]
        for name in table:
            assert to_plain(found[name]) == to_plain(expected[name])
    assert opened.read_column("leiden").cat.categories.tolist() == ["c0", "c1", "c2", "c3"]
    assert opened.read_column("remark").dtype == "category"
    assert read_attributes(store)["format_version"] == 3
    assert not (store / module.SCRATCH).exists()


def test_cells_whose_names_repeat_are_told_apart_by_source_and_row(write_h5ad, tmp_path: Path):
    obs = pd.DataFrame(index=[f"x{k}" for k in range(4)])
    paths = [str(write_h5ad(name, make_counts(4, 5, seed=k), obs=obs)) for k, name in enumerate("ab")]
    ingest(paths, tmp_path / "store", workers=1)
    table = pd.DataFrame({"c": range(4)}, index=obs.index)
    with pytest.raises(ColumnError, match=r"4 names in the table belong to several cells .*`source_row`"):
        add_obs_columns(tmp_path / "store", table)
    table = pd.DataFrame({"source": [p for p in paths for _ in range(4)], "source_row": [*range(4)] * 2, "c": range(8)})
    add_obs_columns(tmp_path / "store", table)
    found = CellStore(tmp_path / "store").read_obs(0, 8)
    place = [paths.index(source) * 4 for source in found["source"]] + found["source_row"]
    assert found["c"].tolist() == place.tolist()
    with pytest.raises(ColumnError, match=r"1 of 8 rows of the table match no cell .*'nowhere', row 0"):
        other = table.rename(columns={"c": "d"}).assign(source=["nowhere", *table["source"][1:]])
        add_obs_columns(tmp_path / "store", other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.iloc[1:], r"1 of 30 cells are not in the table \(first: 'a_0'\)"),
        (lambda table: table.rename(index={"a_3": "b"}), r"1 of 30 rows of the table match no cell .*'b'"),
        (lambda table: pd.concat([table, table.iloc[:1]]), "two rows for a cell .*'a_0'"),
        (lambda table: table.rename(columns={"remark": "batch"}), "obs has a column 'batch' already"),
        (lambda table: table.rename(columns={"remark": "source"}), "obs has a column 'source' already"),
        (lambda table: table.rename(columns={"remark": "id"}), "several columns called 'id'"),
        (lambda table: table.rename(columns={"remark": "_index"}), "can't hold a column called '_index'"),
        (lambda table: table[[]], "no column to add"),
        (lambda table: table.iloc[:0], "has no rows"),
    ],
)
def test_what_does_not_match_is_refused_and_the_store_stays_as_it_was(store: Path, change, message):
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    with pytest.raises(ColumnError, match=message):
        add_obs_columns(store, change(clusters([f"a_{k}" for k in range(N)])))
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before


def test_cells_that_the_table_lacks_are_missing_if_that_is_said(store: Path):
    table = clusters([f"a_{k}" for k in range(10)]).assign(n=np.arange(10), sick=True)
    add_obs_columns(store, table.drop(columns="n"), partial=True)
    obs = CellStore(store).read_obs(0, N)
    asked = obs.index.isin(table.index)
    for name in ("leiden", "G1/S", "sick", "remark"):
        assert obs[name].isna().tolist() == (~asked).tolist()
        assert to_plain(obs.loc[table.index, name]) == to_plain(table[name])
    assert obs["sick"].dtype == "boolean"


def test_a_column_is_replaced_if_that_is_said(store: Path):
    names = [f"a_{k}" for k in range(N)]
    for values in (np.arange(N), [f"x{k}" for k in range(N)]):
        add_obs_columns(store, pd.DataFrame({"leiden": values}, index=names), replace=True)
    found = anndata.read_zarr(store).obs["leiden"]
    assert found[names].tolist() == values
    assert CellStore(store).obs_columns.count("leiden") == 1


def test_a_killed_addition_leaves_the_store_without_the_columns_and_can_be_repeated(store: Path, monkeypatch):
    table = clusters([f"a_{k}" for k in range(N)])
    columns = CellStore(store).obs_columns

    def fail(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_announce", fail)
        add_obs_columns(store, table)
    assert CellStore(store).obs_columns == columns == anndata.read_zarr(store).obs.columns.tolist()
    add_obs_columns(store, table)
    assert set(table) < set(CellStore(store).obs_columns)


def test_what_is_no_store_or_can_not_be_written_is_said(store: Path, tmp_path: Path, monkeypatch):
    table = pd.DataFrame({"x": range(N)}, index=[f"a_{k}" for k in range(N)])
    with pytest.raises(SourceError, match="added to a cell store or a minified store, and it is neither"):
        add_obs_columns(tmp_path, table)

    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OutputError, match="no permission to write there"):
        add_obs_columns(store, table)


def test_a_table_is_read_with_its_numbers_and_gaps_as_they_are(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("\ufeffcell,id,ok,text,x\n01,2293599400000100004,True,a,0.5\n02,,,,\n", encoding="utf-8")
    table = read_table(path)
    assert table.index.tolist() == ["01", "02"]
    assert to_plain(table["id"]) == [2293599400000100004, None]
    assert to_plain(table["ok"]) == [True, None]
    assert to_plain(table["text"]) == ["a", None]
    assert table["id"].dtype == "Int64"
    assert read_table(path, "text", ["x"]).columns.tolist() == ["x"]
    for arguments, message in (
        (("nowhere",), r"no column 'nowhere' \(it has: cell, id"),
        (("cell", ["y"]), "no column 'y'"),
    ):
        with pytest.raises(ColumnError, match=message):
            read_table(path, *arguments)
    for wrong, message in ((tmp_path / "t.xlsx", "ends in .csv or .tsv"), (tmp_path / "no.csv", "can't be read")):
        with pytest.raises(SourceError, match=message):
            read_table(wrong)
    (tmp_path / "s.tsv").write_text("source\tsource_row\tc\nx\t0\tu\n")
    assert read_table(tmp_path / "s.tsv")["source_row"].dtype == np.int64
    assert read_table(tmp_path / "s.tsv", columns=["c"]).columns.tolist() == ["source", "source_row", "c"]
