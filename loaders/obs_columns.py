"""Columns of `obs` of several tables as one: a common type, categories merged."""

import numpy as np
import pandas as pd

from atlasvi.loaders.tables import TEXT


def join_dtypes(dtypes: list) -> object:
    """The dtype of a column that has these in its sources (None: not there): a number, truth, text or categories."""
    known = [dtype for dtype in dtypes if dtype is not None]
    kinds = {_kind(dtype) for dtype in known}
    if "category" not in kinds and len(known) == len(dtypes):
        if len(kinds) == 1:
            return {"int": np.dtype(np.int64), "float": np.dtype(np.float64), "bool": np.dtype(bool)}.get(
                kinds.pop(), np.dtype(object)
            )
        if kinds == {"int", "float"}:
            return np.dtype(np.float64)
    if kinds <= {"int", "float"}:  # missing in a source: NaN
        return np.dtype(np.float64)
    if kinds == {"category"}:
        values = [dtype.categories for dtype in known]
        ordered = all(dtype.ordered for dtype in known) and all(list(v) == list(values[0]) for v in values)
        if len({_kind(v.dtype) for v in values}) > 1:
            values = [v.astype(str) for v in values]
        merged = values[0]
        for more in values[1:]:
            merged = merged.append(more[~more.isin(merged)])
        return pd.CategoricalDtype(merged, ordered=ordered)
    return np.dtype(object)


def _kind(dtype: object) -> str:
    if isinstance(dtype, pd.CategoricalDtype):
        return "category"
    kind = getattr(dtype, "kind", "O")
    if isinstance(dtype, pd.api.extensions.ExtensionDtype):  # nullable: integers as float with NaN, truth as text
        return {"i": "float", "u": "float", "f": "float"}.get(kind, "text")
    return {"i": "int", "u": "int", "f": "float", "b": "bool"}.get(kind, "text")


def convert_column(obs: pd.DataFrame, name: str, dtype: object) -> object:
    """One column of a source as the joined dtype; text where a value is missing becomes None."""
    if name not in obs:
        if isinstance(dtype, pd.CategoricalDtype):
            return pd.Categorical([None] * len(obs), dtype=dtype)
        return np.full(len(obs), np.nan if dtype == np.float64 else None, dtype)  # type: ignore[call-overload]
    column = obs[name]
    if isinstance(dtype, pd.CategoricalDtype):
        if column.cat.categories.dtype != dtype.categories.dtype:
            column = column.cat.rename_categories(column.cat.categories.astype(str))
        return column.cat.set_categories(dtype.categories, ordered=bool(dtype.ordered)).array
    if dtype == TEXT:
        return np.array([None if pd.isna(value) else str(value) for value in column], object)
    if dtype == np.float64 and column.isna().any():
        return column.to_numpy(np.float64, na_value=np.nan)
    return column.to_numpy(dtype)
