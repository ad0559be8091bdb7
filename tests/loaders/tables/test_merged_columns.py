"""Columns of several tables as one: the joined type holds every value exactly."""

from random import Random

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from atlasvi.loaders.tables.merged_columns import TEXT, convert_column, is_masked, join_column, name_value

INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
NULLABLE = [name.replace("i", "I").replace("u", "U") for name in INTEGERS]


def integers(name: str):
    info = np.iinfo(name.lower())
    return st.integers(int(info.min), int(info.max))


VALUES = {
    **{name: integers(name) for name in [*INTEGERS, *NULLABLE]},
    **{f"float{bits}": st.floats(width=bits, allow_nan=False) for bits in (16, 32, 64)},
    **dict.fromkeys(["bool", "boolean"], st.booleans()),
    "object": st.text("ab1/ü", max_size=3),
}
MAY_MISS = {*NULLABLE, "boolean", "object", "float16", "float32", "float64"}


@st.composite
def columns(draw, n_rows: int = 4) -> pd.Series:
    """A column of any type that AnnData has; of some that may miss values, some do."""
    kind = draw(st.sampled_from(sorted(VALUES)))
    values = draw(st.lists(VALUES[kind], min_size=n_rows, max_size=n_rows))
    as_categories = draw(st.booleans())
    if as_categories or kind in MAY_MISS:
        values = [None if draw(st.integers(0, 3)) == 0 else value for value in values]
    if not as_categories:
        return pd.Series(pd.array(values, dtype=kind) if kind not in ("float16", "object") else np.array(values, kind))
    plain = {"boolean": "bool", "object": "object", "float16": "float32"}.get(kind, kind.lower())
    there = list(dict.fromkeys(value for value in values if value is not None))
    return pd.Series(pd.Categorical(values, pd.Index(np.array(there, plain), dtype=plain), draw(st.booleans())))


def to_plain(values: object) -> list[object]:
    """Values as plain Python has them; None where missing."""
    return [
        None if pd.isna(value) else value.item() if isinstance(value, np.generic) else value for value in list(values)
    ]


def join(tables: list[pd.DataFrame], name: str = "x") -> tuple[object, list[list[object]]]:
    dtype = join_column(tables, name, lambda table: [tables[table]])
    return dtype, [to_plain(convert_column(table, name, dtype)) for table in tables]


@settings(max_examples=50, deadline=None)
@given(columns())
def test_a_column_of_one_table_keeps_its_values_missingness_and_type(column):
    dtype, (values,) = join([column.to_frame("x")])
    assert values == to_plain(column)
    assert dtype == (TEXT if isinstance(column.dtype, pd.StringDtype) else column.dtype)  # pandas 3 has text as `str`


def own_dtype(column: pd.Series) -> object:
    """The dtype in which numpy holds a column's values as they are (float32 0.1 is 0.10000000149 in Python)."""
    if column.dtype == np.float16:
        return np.float32
    return object if is_masked(column.dtype) else None  # without it pandas makes integers beside missing values floats


@settings(max_examples=60, deadline=None)
@example(pd.Series([None, 2**63 + 1], dtype="UInt64"), [pd.Series(["a", "b"])], Random(0))
@given(columns(), st.lists(st.one_of(st.none(), columns()), min_size=1, max_size=2), st.randoms())
@example(pd.Series([0.1, None, 1e-38, 7], dtype="float32"), [pd.Series(list("abcd"))], Random(0))
def test_columns_of_several_tables_keep_their_values_or_become_their_text(column, others, random):
    some = [column, *others]
    random.shuffle(some)
    tables = [pd.DataFrame(index=range(4)) if column is None else column.to_frame("x") for column in some]
    dtype, joined = join(tables)
    of_text = dtype == TEXT or (isinstance(dtype, pd.CategoricalDtype) and dtype.categories.dtype == TEXT)
    for column, values in zip(some, joined):
        before = [None] * 4 if column is None else to_plain(column)
        if of_text:
            own = [None] * 4 if column is None else column.to_numpy(own_dtype(column))
            assert values == [None if pd.isna(value) else name_value(value) for value in own]
        else:
            assert values == before


def test_half_precision_numbers_have_one_text_with_and_without_categories():
    values = np.array([0.078125, 0.1], np.float16)
    plain, categories = pd.Series(values), pd.Series(pd.Categorical(values.astype(np.float32)))
    _, joined = join([pd.DataFrame({"x": part}) for part in (plain, categories, np.array([True, False]))])
    assert joined[0] == joined[1] == ["0.078125", "0.099975586"]


def test_numbers_that_are_categories_are_merged_by_value():
    first, second = pd.Categorical([1, 2, 1]), pd.Categorical([1.0, 3.0, None])
    dtype, values = join([pd.DataFrame({"x": part}) for part in (first, second)])
    assert dtype.categories.tolist() == [1, 2, 3]
    assert values == [[1, 2, 1], [1, 3, None]]


def test_categories_of_numbers_beside_numbers_are_numbers():
    dtype, values = join([pd.DataFrame({"x": pd.Categorical([1, 2])}), pd.DataFrame({"x": np.array([3, 4], np.int8)})])
    assert dtype == "Int64"
    assert values == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("first", "second", "dtype", "expected"),
    [
        (np.array([2**60 + 1]), None, "Int64", [[2**60 + 1], [None]]),  # the other table lacks the column
        (np.array([2**64 - 1], np.uint64), np.array([5]), object, [[str(2**64 - 1)], ["5"]]),
        (np.array([2**60 + 1]), np.array([np.nan]), object, [[str(2**60 + 1)], [None]]),
        (np.array([7], np.uint64), np.array([-5]), "int64", [[7], [-5]]),
        (np.array([7]), np.array([0.5]), "float64", [[7], [0.5]]),
        (np.array([7], np.int16), np.array([0.5], np.float32), "float32", [[7], [0.5]]),
        (np.array([True]), None, "boolean", [[True], [None]]),
        (np.array([2.0]), np.array(["a"], object), object, [["2"], ["a"]]),
        (pd.array([2**60 + 1, None], "Int64")[:1], np.array([1], np.int8), "Int64", [[2**60 + 1], [1]]),
    ],
)
def test_what_no_number_type_holds_becomes_text(first, second, dtype, expected):
    tables = [pd.DataFrame({} if part is None else {"x": part}, index=range(1)) for part in (first, second)]
    found, values = join(tables)
    assert found == dtype
    assert values == expected
