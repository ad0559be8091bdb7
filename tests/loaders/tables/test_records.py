"""Records of a table as bytes: what is read is what was written."""

import numpy as np

from atlasvi.loaders.tables.records import decode_text, encode_text, record_to_bytes, records_from_bytes


def test_records_come_back_one_after_the_other_with_text_and_missing_text():
    first = {"x": np.array([1, 2], np.uint8), "name": np.array(["a", None], object)}
    second = {"x": np.array([300], np.uint16), "name": np.array(["naïve ✓"], object)}
    content = record_to_bytes(first) + record_to_bytes(second)
    got = records_from_bytes(np.frombuffer(content, np.uint8))
    assert [record["x"].tolist() for record in got] == [[1, 2], [300]]
    assert [record["x"].dtype for record in got] == [np.uint8, np.uint16]
    assert [record["name"].tolist() for record in got] == [["a", None], ["naïve ✓"]]


def test_arrays_of_two_axes_and_dates_keep_their_shape_and_type():
    z, when = np.arange(6, dtype=np.float32).reshape(3, 2), np.array(["2026-01-01"] * 3, "M8[ns]")
    (got,) = records_from_bytes(np.frombuffer(record_to_bytes({"z": z, "when": when, "none": z[:0]}), np.uint8))
    assert np.array_equal(got["z"], z)
    assert got["when"].tolist() == when.tolist()
    assert got["none"].shape == (0, 2)


def test_texts_of_equal_length_come_back_as_objects():
    texts = np.array(["ab", "cd", "", None], object)
    lengths, content = encode_text(texts)
    assert lengths.tolist() == [2, 2, 0, -1]
    assert decode_text(lengths, content).dtype == object
    assert decode_text(lengths, content).tolist() == texts.tolist()
