"""Tables, columns and indices of pandas whose text is `object`, in which None is a missing value.

Since pandas 3 its own default is `str`, which it also makes of arrays of objects unless it is told the dtype.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd


def make_frame(columns: Mapping[str, Any], index: pd.Index | None = None) -> pd.DataFrame:
    """A table of these columns; index None: their number."""
    series = {name: make_series(values, index) for name, values in columns.items()}
    return pd.DataFrame(series, index=index, columns=pd.Index(list(columns), dtype=object))


def make_series(values: Any, index: pd.Index | None = None) -> pd.Series:
    """A column of the dtype of its values."""
    return pd.Series(values, dtype=values.dtype if isinstance(values, np.ndarray) else None, index=index)


def make_names(values: Any, name: str | None = None) -> pd.Index:
    """An index of text: str(value) of each value, '' where one is missing."""
    names = [value if isinstance(value, str) else "" if value is None else str(value) for value in values]
    return pd.Index(names, dtype=object, name=name)


def join_names(parts: Iterable[pd.Index]) -> pd.Index:
    """Several indices of text as one; pandas 3 makes `str` of indices that it appends."""
    return pd.Index(np.concatenate([np.empty(0, object), *(np.asarray(part, object) for part in parts)]), dtype=object)
