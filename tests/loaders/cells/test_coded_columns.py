"""Columns of obs as codes of categories, read in slices."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from atlasvi.loaders.cells import coded_columns
from atlasvi.loaders.cells.coded_columns import code_column, count_codes, recode


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch):
    monkeypatch.setattr(coded_columns, "SLICE_CELLS", 3)


def cells_with(column: pd.Series) -> Any:
    """Stands for data with one obs column; it records which slices were read."""
    read: list[int] = []

    def read_column(name: str, start: int = 0, stop: int | None = None) -> pd.Series:
        values = column.iloc[start:stop].reset_index(drop=True)
        read.append(len(values))
        return values

    return SimpleNamespace(path="a", n_cells=len(column), read_column=read_column, read=read)


@pytest.mark.parametrize(
    "values",
    [
        pd.Categorical(["b", "a", None, "b", "a", "b", "c"], categories=["c", "unused", "b", "a"]),
        ["b", "a", "b", "c", None, "a", "b"],
        [3, 1, 2, 2**40, 1, 3, 3],
        [0.5, np.nan, 2.0, 0.5, 7.0, 2.0, 2.0],
        [True, False, True, True, True, False, True],
        pd.array([3, None, 1, 1, 2, 3, 3], "Int64"),
        ["b", 1, "a", 1.5, "b", 1, 1],
        [],
    ],
)
def test_slices_give_the_codes_and_categories_of_the_whole_column(values):
    column = pd.Series(values)
    whole = column if isinstance(column.dtype, pd.CategoricalDtype) else column.astype("category")
    data = cells_with(column)
    found = code_column(data, "x")
    assert found.codes.tolist() == whole.cat.codes.tolist()
    assert found.codes.dtype == whole.cat.codes.dtype
    pd.testing.assert_index_equal(found.categories, whole.cat.categories)
    assert max(data.read) <= 3
    used = whole.cat.remove_unused_categories()
    assert found.drop_unused().codes.tolist() == used.cat.codes.tolist()
    pd.testing.assert_index_equal(found.drop_unused().categories, used.cat.categories)
    assert count_codes(found.codes, len(found.categories)).tolist() == [
        int((whole == one).sum()) for one in whole.cat.categories
    ]
    assert found.find_missing().tolist() == np.flatnonzero(whole.isna()).tolist()


def test_many_categories_have_wider_codes():
    found = code_column(cells_with(pd.Series([f"{k:03d}" for k in range(200)])), "x")
    assert found.codes.dtype == np.int16
    assert found.codes.tolist() == list(range(200))


def test_codes_are_translated_by_a_table_whose_last_element_is_for_missing_ones():
    codes, table = np.array([0, 1, -1, 1, 0], np.int8), np.array([7, 300, 0])
    assert recode(codes, table, np.dtype(np.uint16)).tolist() == [7, 300, 0, 300, 7]
