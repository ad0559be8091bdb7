"""Tables are made with text as `object`, whatever the default of pandas is."""

import numpy as np
import pandas as pd

from atlasvi.loaders.tables.frames import join_names, make_frame, make_names, make_series

TEXT = np.array(["a", None, "c"], object)


def test_text_is_object_and_none_is_missing():
    assert make_series(TEXT).dtype == object
    assert make_series(TEXT).tolist() == ["a", None, "c"]
    frame = make_frame({"text": TEXT, "number": np.arange(3, dtype=np.int8)}, make_names(["x", "y", "z"]))
    assert frame.dtypes.tolist() == [object, np.int8]
    assert (frame.index.dtype, frame.columns.dtype) == (object, object)


def test_columns_of_other_types_keep_them():
    numbers, kinds = pd.array([1, None, 3], dtype="Int64"), pd.Categorical(["u", None, "v"])
    frame = make_frame({"numbers": numbers, "kinds": kinds})
    assert frame["numbers"].dtype == "Int64"
    assert frame["kinds"].dtype == kinds.dtype


def test_names_are_text_and_a_missing_one_is_empty():
    names = make_names([1, None, "c"], "cell")
    assert names.tolist() == ["1", "", "c"]
    assert (names.dtype, names.name) == (object, "cell")
    assert make_names(names).name == "cell"


def test_joined_names_stay_objects():
    joined = join_names([make_names(["a"]), make_names([]), make_names(["b", "c"])])
    assert joined.tolist() == ["a", "b", "c"]
    assert joined.dtype == join_names([]).dtype == object
