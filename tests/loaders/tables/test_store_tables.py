"""obs and var go through a store exactly, whatever their types, names and missing values."""

import warnings
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atlasvi.loaders.cells.cell_store import CellStore
from atlasvi.loaders.ingestion import bucket_sorting as sorting
from atlasvi.loaders.ingestion.ingest import ingest
from atlasvi.loaders.sources.open_source import open_source
from atlasvi.loaders.tables import records
from atlasvi.loaders.tables.records import STRING, TextColumns
from atlasvi.loaders.tables.store_tables import TableWriter, consolidate_metadata, place_rows, unmask_complete_text
from tests.loaders.tables.test_merged_columns import columns, to_plain
from tests.text_as_objects import text_as_objects

N = 6
EVERY_TYPE = {
    **{
        name: pd.Series([0, 1, 2, 3, 4, np.iinfo(name).max], dtype=name) for name in ("int8", "int16", "int32", "int64")
    },
    **{name: pd.Series([0, 1, 2, 3, 4, np.iinfo(name).max], dtype=name) for name in ("uint8", "uint32", "uint64")},
    **{name: pd.Series([0.1, np.nan, 2, -np.inf, 4, 5], dtype=name) for name in ("float16", "float32", "float64")},
    **{
        name: pd.Series([0, None, 2, 3, 4, np.iinfo(name.lower()).max], dtype=name)
        for name in ("Int8", "UInt16", "Int64", "UInt64")
    },
    "complete": pd.Series([2293599400000100004 + k for k in range(N)], dtype="Int64"),
    "bool": pd.Series([True, False] * 3),
    "boolean": pd.Series([True, None, False] * 2, dtype="boolean"),
    "unique text": pd.Series(list("abcdef"), dtype=object),
    "of text": pd.Categorical(["b", None, "a", "b", "a", "b"], ["b", "a", "unused"]),
    "ordered": pd.Categorical(["b", None, "a", "b", "a", "b"], ["b", "a"], ordered=True),
    "of integers": pd.Categorical([1, 2, None, 1, 2, 10]),
    "of floats": pd.Categorical(np.array([0.1, 0.5, 2, 0.1, 2, 0.5], np.float32)),
    "of truth": pd.Categorical([True, False, None] * 2),
    "of strings": pd.Categorical(pd.array(["x", None, "y"] * 2, dtype="string")),
    "none": pd.Categorical([None] * N, ["x"]),
}


def write_source(path: Path, obs: pd.DataFrame, form: str, var: pd.DataFrame | None = None) -> Path:
    """Cells with two genes and this obs, as AnnData writes it."""
    obs = obs.set_axis([f"c{k}" for k in range(len(obs))])
    adata = anndata.AnnData(
        np.ones((len(obs), 2), np.float32), obs, pd.DataFrame(index=["g", "h"]) if var is None else var
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form == "h5ad":
            adata.write_h5ad(path)
        else:
            with anndata.settings.override(zarr_write_format=int(form[-1])):
                adata.write_zarr(path)
    return path


def read_in_order(store: Path) -> pd.DataFrame:
    """obs of a store in the order of its sources, as anndata reads it, and checked to be what we read."""
    opened = CellStore(store)
    ours, theirs = opened.read_obs(0, opened.n_cells), anndata.read_zarr(store).obs
    for name in ours:
        assert to_plain(ours[name]) == to_plain(theirs[name])
    place = [opened.sources.index(source) * opened.n_cells for source in ours["source"]] + ours["source_row"]
    return ours.iloc[np.argsort(place)]


def assert_same(found: pd.Series, expected: pd.Series) -> None:
    pd.testing.assert_series_equal(
        found.reset_index(drop=True), expected.reset_index(drop=True), check_names=False, check_categorical=True
    )


@pytest.mark.parametrize("form", ["h5ad", "zarr2", "zarr3"])
def test_every_type_goes_through_a_store_as_it_is(tmp_path: Path, form: str):
    obs = text_as_objects(pd.DataFrame(EVERY_TYPE))
    path = write_source(tmp_path / "a", obs, form)
    ingest(path, tmp_path / "store", workers=1)
    ingest(tmp_path / "store", tmp_path / "again", workers=1)
    source = open_source(path)
    before = source.read_obs(0, N)
    source.close()
    for store in ("store", "again"):
        found = read_in_order(tmp_path / store).sort_index()
        for name in obs:
            assert_same(found[name], before[name])
            assert to_plain(found[name]) == to_plain(obs[name]) or "float" in name
            if name not in ("of strings", "of floats"):
                assert found[name].dtype == obs[name].dtype


def test_genes_and_statistics_of_a_store_are_those_that_anndata_reads(tmp_path: Path):
    var, obs = (
        text_as_objects(pd.DataFrame(EVERY_TYPE)).head(2).set_axis(["g", "h"]),
        pd.DataFrame({"ab": pd.Categorical(list("xyxyxy"))}),
    )
    source = write_source(tmp_path / "a.h5ad", obs, "h5ad", var)
    with h5py.File(source, "r+") as file:  # anndata 0.13 writes no slashes
        file.move("obs/ab", "obs/a/b")
        file["obs"].attrs["column-order"] = ["a/b"]
    ingest(source, tmp_path / "store", workers=1)
    ours, root = CellStore(tmp_path / "store"), zarr.open_group(tmp_path / "store", mode="r")
    theirs = text_as_objects(anndata.io.read_elem(root["var"]))
    assert ours.var.columns.tolist() == theirs.columns.tolist() == var.columns.tolist()
    assert ours.var.index.equals(theirs.index)
    assert ours.var.index.name == theirs.index.name
    for name in var:
        assert to_plain(ours.var[name]) == to_plain(theirs[name])
        assert ours.var[name].dtype == theirs[name].dtype
    statistics = anndata.io.read_elem(root["uns/atlasvi"])
    assert ours.statistics.keys() == statistics.keys()
    np.testing.assert_array_equal(ours.statistics["library"]["a"]["b"], statistics["library"]["a"]["b"])
    for name in ("block_starts", "gene_totals", "gene_cells"):
        np.testing.assert_array_equal(ours.statistics[name], statistics[name])
        assert ours.statistics[name].dtype == statistics[name].dtype


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data(), st.sampled_from(["h5ad", "zarr2", "zarr3"]))
def test_columns_of_joined_sources_come_back_as_they_were(tmp_path_factory, data, form):
    """Each source has a column in a type of its own, or lacks it; units are of one cell."""
    folder = tmp_path_factory.mktemp("join")
    sources = data.draw(st.lists(st.dictionaries(st.sampled_from("xy"), columns(N)), min_size=2, max_size=3))
    paths = []
    for number, drawn in enumerate(sources):
        paths.append(write_source(folder / f"{number}.{form}", pd.DataFrame(drawn, index=range(N)), form))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting, "UNIT_NNZ", 2)
        patch.setattr(records, "MOST_CATEGORIES", data.draw(st.sampled_from([1, 100])))
        ingest(paths, folder / "store", workers=1)
    obs = read_in_order(folder / "store")
    for number, drawn in enumerate(sources):
        here = obs.iloc[N * number : N * (number + 1)]
        for name in set("xy") & set(obs):
            found, before = to_plain(here[name]), to_plain(drawn.get(name, [None] * N))
            if any(isinstance(value, str) for value in found) and not any(isinstance(v, str) for v in before):
                found, before = map(as_numbers, (found, before))
            if any(isinstance(value, float) for value in before):  # the text of a float32 is not all of its digits
                assert [value is None for value in found] == [value is None for value in before]
                found, before = ([value for value in values if value is not None] for values in (found, before))
            assert found == pytest.approx(before) if is_numeric(before) else found == before


def is_numeric(values: list) -> bool:
    return all(isinstance(value, float) for value in values)


def as_numbers(values: list) -> list:
    """Numbers by value, whether they are text or not."""
    return [value if value in (None, "True", "False") else float(str(value)) for value in map(_text_of_truth, values)]


def _text_of_truth(value: object) -> object:
    return str(value) if isinstance(value, bool) else value


def test_text_of_many_values_keeps_what_is_missing(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(records, "MOST_CATEGORIES", 3)
    text = pd.Series(["a", "b", "", "d", "e", "f"], dtype=object)
    path = write_source(tmp_path / "a.h5ad", pd.DataFrame({"cdr3": text}), "h5ad")
    other = write_source(tmp_path / "b.h5ad", pd.DataFrame(index=range(2)), "h5ad")
    ingest([path, other], tmp_path / "store", workers=1)
    assert to_plain(read_in_order(tmp_path / "store")["cdr3"]) == [*text, None, None]
    assert str(anndata.read_zarr(tmp_path / "store").obs["cdr3"].dtype).startswith("str")


NAMES = ["G1/S", "G1/M", "Study", "study", "a b", "ü", "a\nb", "n" * 300, "__categories2", "c", "zarr.json", "codes"]


def test_names_that_are_paths_or_differ_by_case_stay_and_others_are_renamed_with_a_word(tmp_path: Path):
    obs = pd.DataFrame({f"column{k}": np.arange(N) + k for k in range(len(NAMES))})
    path = write_source(tmp_path / "a.h5ad", obs.astype({"column2": "category", "column3": "category"}), "h5ad")
    with h5py.File(path, "r+") as file:
        for k, name in enumerate(NAMES):
            file["obs"].move(f"column{k}", name)
        file["obs"].attrs["column-order"] = np.array(NAMES, h5py.string_dtype())
    report = ingest(path, tmp_path / "store", workers=1)
    assert report.renamed_columns == {"n" * 300: "n" * 200, "zarr.json": "column_zarr.json"}
    found = read_in_order(tmp_path / "store")
    expected = [report.renamed_columns.get(name, name) for name in NAMES]
    assert found.columns.tolist() == [*expected, "source", "source_row"]
    for k, name in enumerate(expected):
        assert found[name].astype(int).tolist() == list(range(k, N + k))
    assert CellStore(tmp_path / "store").read_column("study").dtype == "category"


def test_a_column_called_like_the_index_is_kept_under_another_name(tmp_path: Path):
    path = write_source(tmp_path / "a.h5ad", pd.DataFrame({"names": list("uvwxyz")}), "h5ad")
    with h5py.File(path, "r+") as file:
        file["obs"].attrs["_index"] = "names"
        file["obs"].attrs["column-order"] = np.array(["_index"], h5py.string_dtype())
    report = ingest(path, tmp_path / "store", workers=1)
    assert report.renamed_columns == {"_index": "_index_before"}
    found = read_in_order(tmp_path / "store")
    assert found.index.tolist() == list("uvwxyz")
    assert found["_index_before"].tolist() == [f"c{k}" for k in range(N)]


def test_a_store_of_a_store_of_a_store_keeps_each_source(tmp_path: Path):
    path = write_source(tmp_path / "a.h5ad", pd.DataFrame({"n": range(N)}), "h5ad")
    ingest(path, tmp_path / "1", workers=1)
    for k in (1, 2):
        ingest(tmp_path / str(k), tmp_path / str(k + 1), seed=k, workers=1)
    obs = CellStore(tmp_path / "3").read_obs(0, N)
    assert set(obs["source"]) == {str(tmp_path / "2")}
    assert set(obs["source_before"]) == {str(tmp_path / "1")}
    assert set(obs["source_before_before"]) == {str(path)}
    assert obs["source_row_before_before"].tolist() == obs["n"].tolist()


def test_columns_of_var_keep_their_types_and_what_the_first_source_says(tmp_path: Path):
    first = pd.DataFrame(
        {
            "chromosome": pd.Categorical([1, None]),
            "flag": pd.array([True, None], "boolean"),
            "length": np.array([2**60 + 1, 2]),
            "symbol": ["s1", "s2"],
        },
        index=["g", "h"],
    )
    second = pd.DataFrame({"chromosome": pd.Categorical([2, 3]), "length": [7, 8]}, index=["h", "i"])
    obs = pd.DataFrame(index=range(N))
    paths = [write_source(tmp_path / f"{k}.h5ad", obs, "h5ad", var) for k, var in enumerate((first, second))]
    ingest(paths[0], tmp_path / "one", workers=1)
    one = CellStore(tmp_path / "one").var
    assert one["length"].dtype == np.int64
    for name in first:
        assert to_plain(one[name]) == to_plain(first[name])
    ingest(paths, tmp_path / "two", workers=1)
    two = CellStore(tmp_path / "two").var
    assert two.index.tolist() == ["g", "h", "i"]
    assert to_plain(two["chromosome"]) == [1, 2, 3]
    assert to_plain(two["length"]) == [2**60 + 1, 2, 8]
    assert to_plain(two["symbol"]) == ["s1", "s2", None]
    assert to_plain(two["flag"]) == [True, None, None]


def test_categories_that_are_nullable_strings_are_read(tmp_path: Path):
    path = write_source(tmp_path / "a.h5ad", pd.DataFrame({"donor": pd.Categorical(["d1", "d2"] * 3)}), "h5ad")
    with h5py.File(path, "r+") as file:
        del file["obs/donor/categories"]
        group = file["obs/donor"].create_group("categories")
        group.attrs.update({"encoding-type": "nullable-string-array", "encoding-version": "0.1.0"})
        group["values"], group["mask"] = np.array(["d1", "d2"], h5py.string_dtype()), np.zeros(2, bool)
    source = open_source(path)
    assert source.read_obs(0, N)["donor"].tolist() == ["d1", "d2"] * 3
    source.close()


def test_dates_that_zarr_holds_stay_dates(tmp_path: Path):
    days = pd.Series(pd.to_datetime(["2020-01-01T00:00", None, "2021-06-01T12:00"] * 2))
    path = write_source(tmp_path / "a.zarr", pd.DataFrame({"visit": pd.Categorical(days)}), "zarr3")
    group = zarr.open_group(path, mode="r+", use_consolidated=False)["obs"]
    attributes = {"encoding-type": "array", "encoding-version": "0.2.0"}
    group.create_array("day", data=days.to_numpy(), attributes=attributes)
    group.attrs["column-order"] = ["visit", "day"]
    ingest(path, tmp_path / "store", workers=1)
    found = read_in_order(tmp_path / "store")
    for name in ("visit", "day"):
        assert to_plain(found[name]) == to_plain(days)
    assert found["day"].dtype == days.dtype


def test_what_was_seen_of_text_columns_adds_up():
    parts = [TextColumns({"x": np.dtype(object)}) for _ in range(2)]
    parts[0].see({"obs/x": np.array(["a", None], object)})
    parts[1].see({"obs/x": np.array(["b", "a"], object)})
    parts[1].add_json(parts[0].to_json())
    assert (parts[1].values, parts[1].missing) == ({"x": {"a", "b"}}, {"x"})


def test_text_written_in_parts_has_a_mask_only_where_some_is_missing(tmp_path: Path):
    root = zarr.open_group(tmp_path, mode="w")
    writer = TableWriter(root, "obs", 2, {"a/full": STRING, "gaps": STRING}, 1)
    for row, (full, gaps) in enumerate((("x", "y"), ("", None))):
        record = {"obs/_index": [f"c{row}"], "obs/a/full": [full], "obs/gaps": [gaps]}
        place_rows(writer.group, row, {name: np.array(values, object) for name, values in record.items()})
    unmask_complete_text(writer.group, tmp_path / "obs")
    consolidate_metadata(tmp_path)
    obs = anndata.io.read_elem(zarr.open_group(tmp_path)["obs"])
    assert to_plain(obs["a/full"]) == ["x", ""]
    assert to_plain(obs["gaps"]) == ["y", None]
    reopened = zarr.open_group(tmp_path)
    assert reopened["obs/a/full"].attrs["encoding-type"] == "string-array"
    assert reopened["obs/gaps"].attrs["encoding-type"] == "nullable-string-array"
