"""One column from the columns of several tables: the dtype that holds all values exactly, and the conversion to it.

The dtype is a number, bool or datetime dtype of numpy; a nullable integer or boolean of pandas, where values may be
missing; `object` for text, in which None is a missing value; or categorical. Numbers are compared by value: 1 and 1.0
are one category.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

TEXT = np.dtype(object)
EXACT_FLOAT = 2**53  # whole numbers up to this are exact in float64
LONG = (np.dtype(np.longdouble), np.dtype(np.clongdouble))  # files hold them on some platforms only: stored as text
NULLABLE = {f"{sign}int{bits}": f"{'UI' if sign else 'I'}nt{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
Fits = Callable[[int, int], bool]
"""Called with the index of a table and a bound: whether the magnitudes of all its integers are within the bound."""


def join_dtypes(dtypes: Sequence[Any], fits: Fits = lambda table, bound: True) -> Any:
    """The dtype of a column, given its dtype in each table (None: the table lacks the column).

    fits  called only where dtypes do not decide: 64-bit integers beside floats, or signed beside unsigned integers.
          If the values do not fit, the column becomes text, which holds all of them.
    """
    known = {table: dtype for table, dtype in enumerate(dtypes) if dtype is not None}
    if all(isinstance(dtype, pd.CategoricalDtype) for dtype in known.values()):
        return _merge_categories(list(known.values()))
    common = _find_common({table: _element_dtype(dtype) for table, dtype in known.items()}, fits)
    may_miss = len(known) < len(dtypes) or any(map(_may_miss, known.values()))
    if not may_miss or common.kind in "fcMmO":  # these dtypes have a value for missing ones
        return common
    return pd.BooleanDtype() if common.kind == "b" else pd.api.types.pandas_dtype(NULLABLE[common.name])


def join_column(tables: Sequence[pd.DataFrame], name: str, read_slices: Callable[[int], Iterable[pd.DataFrame]]) -> Any:
    """The joined dtype of one column.

    tables       one table for each source, with its columns; it may have no rows
    read_slices  reads all rows of a table, in slices; called only where the dtypes do not decide
    """

    def fits(table: int, bound: int) -> bool:
        for rows in read_slices(table):
            values, missing = split_missing(rows[name])
            there = values[~missing]
            if len(there) and not -bound <= int(there.min()) <= int(there.max()) <= bound:
                return False
        return True

    return join_dtypes([table[name].dtype if name in table else None for table in tables], fits)


def convert_column(obs: pd.DataFrame, name: str, dtype: Any) -> Any:
    """A column of a table in the joined dtype, as a numpy or pandas array; all missing if the table lacks it."""
    if isinstance(dtype, pd.CategoricalDtype):
        codes = _recode(obs[name], dtype) if name in obs else np.full(len(obs), -1)
        return pd.Categorical.from_codes(codes, dtype=dtype)
    if name in obs:
        values, missing = split_missing(obs[name])
    else:
        values, missing = np.zeros(len(obs), getattr(dtype, "numpy_dtype", dtype)), np.ones(len(obs), bool)
    if dtype == TEXT:
        text = np.empty(len(values), object)
        text[:] = [None if gone else name_value(value) for value, gone in zip(values, missing)]
        return text
    if is_masked(dtype):
        plain = values.astype(dtype.numpy_dtype)
        make = pd.arrays.BooleanArray if plain.dtype == bool else pd.arrays.IntegerArray
        return make(plain, missing.copy())
    if not missing.any():
        return values.astype(dtype)
    converted = values.astype(dtype)
    converted[missing] = np.array("NaT" if dtype.kind in "Mm" else np.nan, dtype)
    return converted


def split_missing(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """(values in a numpy dtype, text as object; bool mask of missing values, where the value has no meaning)."""
    dtype, missing = column.dtype, column.isna().to_numpy()
    if isinstance(dtype, pd.CategoricalDtype):
        categories = plain_values(column.cat.categories)
        if not len(categories):
            return np.zeros(len(column), categories.dtype), missing
        return categories[column.cat.codes.to_numpy()], missing
    if isinstance(dtype, pd.api.extensions.ExtensionDtype) and (plain := _element_dtype(dtype)) != TEXT:
        return column.to_numpy(plain, na_value=plain.type()), missing
    return column.to_numpy(object if _element_dtype(dtype) == TEXT else None), missing


def plain_values(values: Any) -> np.ndarray:
    """An array or index without missing values in a numpy dtype; values of other types become text."""
    dtype = _element_dtype(values.dtype)
    if dtype != TEXT:
        return np.asarray(values, dtype)
    return _to_text(values)


def to_index(values: np.ndarray) -> pd.Index:
    """Values as an index, text as object; pandas has no index of half-precision floats."""
    if values.dtype == TEXT:
        return pd.Index(values, dtype=object)
    return pd.Index(values.astype(np.float32) if values.dtype == np.float16 else values)


def name_value(value: Any) -> str:
    """A value as text; a whole number gives the same text as an integer and as a float.

    A half-precision number is written as in float32, which it is where it is a category: see `to_index`.
    """
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.float16):
        value = np.float32(value)
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)


def is_masked(dtype: Any) -> bool:
    """Whether it is a nullable integer or boolean dtype of pandas."""
    return isinstance(dtype, pd.BooleanDtype) or getattr(dtype, "name", "") in NULLABLE.values()


def _element_dtype(dtype: Any) -> np.dtype:
    """The numpy dtype of a column's values where none is missing; `object` where they are stored as text."""
    if isinstance(dtype, pd.CategoricalDtype):
        return _element_dtype(dtype.categories.dtype)
    plain = getattr(dtype, "numpy_dtype", None) if isinstance(dtype, pd.api.extensions.ExtensionDtype) else dtype
    is_known = isinstance(plain, np.dtype) and plain.kind in "iufbcMm" and plain not in LONG
    return plain.newbyteorder("=") if isinstance(plain, np.dtype) and is_known else TEXT


def _may_miss(dtype: Any) -> bool:
    return isinstance(dtype, pd.api.extensions.ExtensionDtype)


def _find_common(dtypes: dict[int, np.dtype], fits: Fits) -> np.dtype:
    """The numpy dtype that holds the values of all tables exactly, or `object`."""
    kinds = {dtype.kind for dtype in dtypes.values()}
    if kinds == {"O"} or not (kinds <= set("iufc") or len(kinds) == 1):
        return TEXT
    common = np.result_type(*dtypes.values())
    wide = [table for table, dtype in dtypes.items() if dtype.kind in "iu" and dtype.itemsize == 8]
    if kinds == {"i", "u"} and common.kind == "f":
        return np.dtype(np.int64) if all(fits(table, 2**63 - 1) for table in wide) else TEXT
    if common.kind in "fc" and not all(fits(table, EXACT_FLOAT) for table in wide):
        return TEXT
    return common


def _merge_categories(dtypes: list[pd.CategoricalDtype]) -> pd.CategoricalDtype:
    """The categories of the first table, then those that each further one adds; equal numbers are one category."""
    parts = [plain_values(dtype.categories) for dtype in dtypes]
    ordered = all(dtype.ordered for dtype in dtypes) and all(list(part) == list(parts[0]) for part in parts)
    filled = [part for part in parts if len(part)] or parts[:1]  # the dtype of an empty list means nothing
    common = _find_common(
        {k: part.dtype for k, part in enumerate(filled)},
        lambda k, bound: all(abs(int(value)) <= bound for value in filled[k]),
    )
    merged = _cast_categories(filled[0], common).unique()  # 1 and '1' of one table can become the same text
    for part in filled[1:]:
        more = _cast_categories(part, common).unique()
        merged = to_index(np.concatenate([merged.to_numpy(), more[~more.isin(merged)].to_numpy()]))
    return pd.CategoricalDtype(merged, ordered=ordered)


def _cast_categories(values: np.ndarray, dtype: np.dtype) -> pd.Index:
    return to_index(_to_text(values) if dtype == TEXT else values.astype(dtype))


def _recode(column: pd.Series, dtype: pd.CategoricalDtype) -> np.ndarray:
    """Codes of a categorical column among other categories, -1 for missing values."""
    values = plain_values(column.cat.categories)
    known = to_index(_to_text(values) if _element_dtype(dtype) == TEXT else values)
    return np.append(dtype.categories.get_indexer(known), -1)[column.cat.codes.to_numpy()]


def _to_text(values: Iterable[Any]) -> np.ndarray:
    return np.array([*map(name_value, values), None], object)[:-1]  # None keeps numpy from making fixed-width text
