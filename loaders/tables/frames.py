"""Tables, columns and indices of pandas whose text is `object`, in which None is a missing value.

Since pandas 3 its own default is `str`, which it also makes of arrays of objects unless it is told the dtype.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd


def make_frame(columns: Mapping[str, Any], index: pd.Index | None = None) -> pd.DataFrame:
    """A table of these columns.

    columns  arrays, or columns of pandas, by name
    index    of the rows; None: 0, 1, 2, ...
    """
    series = {name: make_series(values, index) for name, values in columns.items()}
    return pd.DataFrame(series, index=index, columns=pd.Index(list(columns), dtype=object))


def make_series(values: Any, index: pd.Index | None = None) -> pd.Series:
    """A column with the dtype that the array has, or that pandas finds for other values."""
    return pd.Series(values, dtype=values.dtype if isinstance(values, np.ndarray) else None, index=index)


def make_names(values: Any, name: str | None = None) -> pd.Index:
    """An index of text: str(value) of each value, and '' for None.

    name  of the index; None: that of `values`, if they are an index
    """
    if name is None and isinstance(values, pd.Index):
        name = values.name
    names = [value if isinstance(value, str) else "" if value is None else str(value) for value in values]
    return pd.Index(names, dtype=object, name=name)


def join_names(parts: Iterable[pd.Index]) -> pd.Index:
    """Several indices of text as one; what pandas 3 appends to an index of objects becomes `str`."""
    return pd.Index(np.concatenate([np.empty(0, object), *(np.asarray(part, object) for part in parts)]), dtype=object)
