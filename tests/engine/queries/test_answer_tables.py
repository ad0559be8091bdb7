"""Answers as files; the questions themselves are tested with what answers them."""

import csv
import gzip
import sys
import tracemalloc
from collections.abc import Iterator
from io import StringIO
from itertools import pairwise
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from atlasvi.engine.queries import answer_rows
from atlasvi.engine.queries.answer_rows import Rows
from atlasvi.engine.queries.answer_tables import write_frame, write_frames, write_table
from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.engine.queries.text_answers import guard_formula

HOSTILE = ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3", "\t=1", "\r=1", "\n=1", "＝1+1"]
HARMLESS = ["CD3E", "a\r\n=1", 'a,b"c\td', "HLA-A", "AAAC-1", "-1.5", "+3", "-1e-5", "a=b", "'=1", "", " =1", "7SK"]
VALUES = np.array([[-1.5, 2.0]], np.float32)


def answer(cell: str) -> Iterator[tuple[pd.Index, np.ndarray]]:
    return iter([(pd.Index([cell]), VALUES)])


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_spreadsheet_would_run_as_a_formula_becomes_text(name: str):
    assert guard_formula(name) == f"'{name}"


@pytest.mark.parametrize("name", HARMLESS)
def test_other_names_and_numbers_stay_as_they_are(name: str):
    assert guard_formula(name) == name


@pytest.mark.parametrize("file", ["a.csv", "a.tsv", "a.csv.gz", "a.tsv.gz"])
def test_names_are_guarded_in_text_and_values_stay_numbers(tmp_path: Path, file: str):
    for name in [*HOSTILE, *HARMLESS]:
        assert write_table(answer(name), [name, "g2"], tmp_path / file) == 1
        with (gzip.open if file.endswith("gz") else open)(tmp_path / file, "rt", newline="") as text:
            rows = list(csv.reader(text, delimiter="\t" if ".tsv" in file else ","))
        assert rows == [["cell", guard_formula(name), "g2"], [guard_formula(name), "-1.5", "2"]]
        (tmp_path / file).unlink()


def test_an_archive_holds_names_as_they_are(tmp_path: Path):
    write_table(answer("=1+1"), ["@gene", "g2"], tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as archive:
        assert archive["cells"].tolist() == ["=1+1"]
        assert archive["columns"].tolist() == ["@gene", "g2"]
        assert np.array_equal(archive["values"], VALUES)


@pytest.mark.parametrize("sizes", [[], [0], [3, 1, 0, 2]])
def test_an_archive_of_slices_is_that_of_all_at_once(tmp_path: Path, sizes: list[int]):
    rng, ends = np.random.default_rng(0), np.cumsum([0, *sizes])
    names = pd.Index([["a", "bb", "ä" * 7, "d", "", "f"][k] for k in range(ends[-1])], dtype=object)
    values = rng.random((ends[-1], 2)).astype(np.float32)
    slices = ((names[a:b], values[a:b]) for a, b in pairwise(ends.tolist()))
    assert write_table(slices, ["x", "long"], tmp_path / "a.npz") == ends[-1]
    np.savez_compressed(tmp_path / "b.npz", cells=names.to_numpy().astype(str), columns=["x", "long"], values=values)
    with np.load(tmp_path / "a.npz") as found, np.load(tmp_path / "b.npz") as expected:
        assert list(found) == list(expected)
        for name in expected:
            assert found[name].dtype == expected[name].dtype
            assert np.array_equal(found[name], expected[name])


def test_an_archive_takes_the_memory_of_a_slice(tmp_path: Path):
    def make(n_slices: int) -> Iterator[tuple[pd.Index, np.ndarray]]:
        for _ in range(n_slices):
            yield pd.Index([f"cell {k}" for k in range(1000)]), np.zeros((1000, 50), np.float32)

    peaks = []
    for n_slices in (3, 30):  # 0.6 and 6 MB of values
        tracemalloc.start()
        write_table(make(n_slices), [f"z{k}" for k in range(50)], tmp_path / f"{n_slices}.npz")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


class Screen(StringIO):
    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


def test_only_a_terminal_gets_escapes_instead_of_control_characters(monkeypatch):
    for is_terminal, shown in ((True, r"\x1b[2Jc"), (False, "\x1b[2Jc")):
        screen = Screen(is_terminal)
        monkeypatch.setattr(sys, "stdout", screen)
        write_table(answer("\x1b[2Jc"), ["g1", "g2"], None)
        header, row = (line.replace(",", " ").split() for line in screen.getvalue().splitlines())
        assert header == ["cell", "g1", "g2"]
        assert row == [shown, "-1.5", "2"]


def test_nothing_is_computed_for_a_place_that_cannot_be_written(tmp_path: Path):
    def fail() -> Iterator[tuple[pd.Index, np.ndarray]]:
        raise AssertionError("computed in vain")
        yield

    for name in ("none/a.csv", "none/a.npz", "a.xlsx", "a.csv.zip", "a.npz.gz", "a.csv.bak"):
        with pytest.raises((OSError, ValueError), match=name):
            write_table(fail(), ["g1"], tmp_path / name)


def test_a_table_of_numbers_text_and_truth_values_is_written_and_read_back(tmp_path: Path):
    table = pd.DataFrame(
        {"lfc": [0.5, -2.0], "called": [True, False], "group": ["=1+1", 'a,"b"'], "-n": [3, 4]}, index=["g1", "@g2"]
    )
    assert write_frame(table, "gene", tmp_path / "a.csv") == 2
    with open(tmp_path / "a.csv", newline="") as text:
        rows = list(csv.reader(text))
    assert rows == [
        ["gene", "lfc", "called", "group", "'-n"],
        ["g1", "0.5", "True", "'=1+1", "3"],
        ["'@g2", "-2", "False", 'a,"b"', "4"],
    ]
    assert write_frame(table, "gene", tmp_path / "a.npz") == 2
    with np.load(tmp_path / "a.npz") as archive:
        assert archive["gene"].tolist() == ["g1", "@g2"]
        assert archive["group"].tolist() == ["=1+1", 'a,"b"']
        assert archive["lfc"].tolist() == [0.5, -2.0]
        assert archive["called"].tolist() == [True, False]


def test_what_fails_with_the_first_row_prints_nothing(capsys: pytest.CaptureFixture):
    def fail() -> Iterator[tuple[pd.Index, np.ndarray]]:
        raise ValueError("a column is missing")
        yield

    with pytest.raises(ValueError, match="a column is missing"):
        write_table(fail(), ["g1"], None)
    assert capsys.readouterr().out == ""
    write_table(iter([]), ["g1"], None)
    assert capsys.readouterr().out == "cell,g1\n"


FORMATS = ["csv", "tsv.gz", "parquet", "npz", "h5ad", "zarr"]


def read_back(file: Path) -> pd.DataFrame:
    """A table of any format: names as the index, all columns."""
    if ".csv" in file.name or ".tsv" in file.name:
        return pd.read_csv(file, index_col=0, sep="\t" if ".tsv" in file.name else ",", dtype={"text": str})
    if file.suffix == ".parquet":
        return pd.read_parquet(file).set_index("cell")
    if file.suffix == ".npz":
        with np.load(file) as archive:
            beside = {name.removeprefix("obs/"): archive[name] for name in archive if name.startswith("obs/")}
            values = dict(zip(archive["columns"].tolist(), archive["values"].T))
            return pd.DataFrame({**beside, **values}, index=archive["cells"])
    adata = anndata.read_h5ad(file) if file.suffix == ".h5ad" else anndata.read_zarr(file)
    return pd.concat([adata.obs, adata.to_df()], axis=1)


def make_rows(n_slices: int = 5) -> Iterator[Rows]:
    """Slices of unequal length, with columns of each type beside the values; texts change from slice to slice."""
    rng = np.random.default_rng(0)
    for k in range(n_slices):
        n = 3 + k
        beside = pd.DataFrame(
            {
                "text": pd.Categorical([f"type {k}", "a,b", None] + ["x"] * k),
                "whole": np.arange(n) * 123_456_789,
                "flag": np.arange(n) % 2 == 0,
                "number": rng.random(n).astype(np.float32),
            }
        )
        yield Rows(pd.Index([f"c{k}-{j}" for j in range(n)]), beside, rng.random((n, 2)).astype(np.float32))


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_holds_the_same_numbers_with_columns_beside_them(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(answer_rows, "BLOCK_VALUES", 8)  # blocks of 4 rows: shorter and longer than slices
    expected = list(make_rows())
    assert write_table(make_rows(), ["g1", "g2"], tmp_path / f"a.{ending}", precision=9) == 25
    found = read_back(tmp_path / f"a.{ending}")
    assert found.index.tolist() == [name for rows in expected for name in rows.names]
    assert found[["g1", "g2"]].to_numpy(np.float32).tolist() == np.concatenate([r.values for r in expected]).tolist()
    beside = pd.concat([rows.beside.astype({"text": object}) for rows in expected])
    assert found["text"].astype(object).fillna("").tolist() == beside["text"].fillna("").tolist()
    assert found["whole"].tolist() == beside["whole"].tolist()
    assert found["flag"].tolist() == beside["flag"].tolist()
    assert found["number"].to_numpy(np.float32).tolist() == beside["number"].tolist()


@pytest.mark.parametrize("ending", FORMATS)
def test_numbers_of_which_some_are_missing_stay_numbers(tmp_path: Path, ending: str):
    beside = pd.DataFrame({"age": pd.array([61, None, -7], "Int64"), "old": pd.array([True, None, False], "boolean")})
    beside["share"] = pd.array([0.5, None, -1], "Float64")
    rows = Rows(pd.Index(["a", "b", "c"]), beside, np.zeros((3, 1), np.float32))
    write_table([rows], ["g1"], tmp_path / f"a.{ending}")
    found = read_back(tmp_path / f"a.{ending}")
    assert found["age"].astype("Float64").fillna(0).tolist() == [61, 0, -7]
    assert found["share"].astype("Float64").fillna(0).tolist() == [0.5, 0, -1]
    assert [str(value) for value in found["old"].astype(object).where(found["old"].notna(), "")] == [
        "True",
        "",
        "False",
    ]


@pytest.mark.parametrize("ending", FORMATS)
def test_an_answer_without_rows_has_its_columns_in_every_format(tmp_path: Path, ending: str):
    assert write_table(iter([]), ["g1", "g2"], tmp_path / f"a.{ending}") == 0
    found = read_back(tmp_path / f"a.{ending}")
    assert found.shape == (0, 2)
    assert found.columns.tolist() == ["g1", "g2"]


@pytest.mark.parametrize("ending", ["parquet", "h5ad", "zarr"])
def test_a_table_of_text_and_numbers_is_a_table_in_every_format(tmp_path: Path, ending: str):
    table = pd.DataFrame({"lfc": [0.5, -2.0], "called": [True, False], "group": ["=1+1", None]}, index=["g1", "@g2"])
    assert write_frame(table, "gene", tmp_path / f"a.{ending}") == 2
    if ending == "parquet":
        found = pd.read_parquet(tmp_path / "a.parquet").set_index("gene")
    else:
        found = (anndata.read_h5ad if ending == "h5ad" else anndata.read_zarr)(tmp_path / f"a.{ending}").obs
    assert found.index.tolist() == ["g1", "@g2"]
    assert found["lfc"].tolist() == [0.5, -2.0]
    assert found["called"].tolist() == [True, False]
    assert found["group"].astype(object).fillna("missing").tolist() == ["=1+1", "missing"]


def test_a_table_may_come_in_slices(tmp_path: Path):
    table = pd.DataFrame({"lfc": [0.5, -2.0, 1.0], "group": ["a", "long name", None]}, index=["g1", "g2", "g3"])
    for name in ("a.csv", "a.npz"):
        assert write_frame(table, "gene", tmp_path / f"whole_{name}") == 3
        assert write_frames(iter([table[:1], table[1:]]), "gene", tmp_path / name) == 3
        if name == "a.csv":
            assert (tmp_path / name).read_text() == (tmp_path / f"whole_{name}").read_text()
        else:
            with np.load(tmp_path / name) as found, np.load(tmp_path / f"whole_{name}") as expected:
                assert {key: found[key].tolist() for key in found} == {key: expected[key].tolist() for key in expected}


@pytest.mark.parametrize("ending", FORMATS)
def test_a_failure_leaves_nothing_behind(tmp_path: Path, ending: str):
    def fail() -> Iterator[Rows]:
        yield from make_rows(1)
        raise ValueError("the disk went away")

    with pytest.raises(ValueError, match="went away"):
        write_table(fail(), ["g1", "g2"], tmp_path / f"a.{ending}")
    assert list(tmp_path.iterdir()) == []


def test_text_beside_values_is_guarded_and_numbers_stay_numbers(tmp_path: Path):
    beside = pd.DataFrame({"=kind": ["=HYPERLINK(1)", None, "-3"], "n": [-5, 2**40, 7], "x": [-0.5, np.nan, 2]})
    rows = Rows(pd.Index(["a", "b", "@c"]), beside, np.array([[-1.0], [2.0], [3.0]], np.float32))
    write_table([rows], ["g1"], tmp_path / "a.csv")
    with open(tmp_path / "a.csv", newline="") as text:
        found = list(csv.reader(text))
    assert found == [
        ["cell", "'=kind", "n", "x", "g1"],
        ["a", "'=HYPERLINK(1)", "-5", "-0.5", "-1"],
        ["b", "", "1099511627776", "nan", "2"],
        ["'@c", "-3", "7", "2", "3"],
    ]


def test_a_terminal_gets_aligned_columns(monkeypatch: pytest.MonkeyPatch):
    screen = Screen(True)
    monkeypatch.setattr(sys, "stdout", screen)
    table = pd.DataFrame({"lfc": [0.5, -12.25], "group": ["a", "long name"], "n": [3, 40_000]}, index=["g1", "gene2"])
    assert write_frame(table, "gene", None) == 2
    assert screen.getvalue() == (
        "gene      lfc  group          n\n"
        "g1        0.5  a              3\n"
        "gene2  -12.25  long name  40000\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "columns", "repeated"),
    [("x.h5ad", ["a/b", "a_b"], "a_b"), ("x.zarr", ["a/b", "a_b"], "a_b"), ("x.parquet", ["cell"], "cell")],
)
def test_two_columns_of_one_name_are_refused_and_nothing_is_left(
    tmp_path: Path, name: str, columns: list[str], repeated: str
):
    rows = Rows(pd.Index(["c1"]), pd.DataFrame({column: [1] for column in columns}), VALUES)
    with pytest.raises(QueryError, match=f"Two columns of the answer have the name '{repeated}'"):
        write_table([rows], ["g1", "g2"], tmp_path / name)
    assert not any(tmp_path.iterdir())
    assert write_table([rows], ["g1", "g2"], tmp_path / "x.csv") == 1
