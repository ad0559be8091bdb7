"""Records: the columns of a table as plain arrays, the form in which they are on disk until the table is written.

`obs/NAME` are the values (text as objects, None where missing; categoricals as codes, -1 where missing), and
`mask/NAME` is True where a value is missing, for dtypes that keep this apart.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import pandas as pd

from atlasvi.loaders.tables.column_names import INDEX
from atlasvi.loaders.tables.merged_columns import TEXT, is_masked

STRING = pd.StringDtype("python")  # text with missing values, stored with a mask
MOST_CATEGORIES = 10_000  # text with more distinct values stays text


def obs_to_record(obs: pd.DataFrame) -> dict[str, np.ndarray]:
    """Columns as arrays, categoricals as int32 codes; the index as `obs/_index`."""
    record = {f"obs/{INDEX}": np.asarray(obs.index, object)}
    for name, column in obs.items():
        if isinstance(column.dtype, pd.CategoricalDtype):
            record[f"obs/{name}"] = column.cat.codes.to_numpy(np.int32)
        elif is_masked(column.dtype):
            plain = cast(Any, column.dtype).numpy_dtype
            record[f"obs/{name}"] = column.to_numpy(plain, na_value=plain.type())
            record[f"mask/{name}"] = column.isna().to_numpy()
        else:
            record[f"obs/{name}"] = column.to_numpy()
    return record


class TextColumns:
    """Finds the text columns that have few distinct values, which are then written as categoricals."""

    def __init__(self, dtypes: Mapping[str, object]) -> None:
        self.values: dict[str, set[str]] = {name: set() for name, dtype in dtypes.items() if dtype == TEXT}
        self.crowded: set[str] = set()
        self.missing: set[str] = set()  # columns with missing values

    def see(self, record: Mapping[str, np.ndarray]) -> None:
        """Add the values of one record."""
        for name in self.values:
            self._add(name, record[f"obs/{name}"])

    def _add(self, name: str, values: Iterable[str | None]) -> None:
        found = set(values)
        if None in found:
            self.missing.add(name)
        if name not in self.crowded:
            self.values[name].update(value for value in found if value is not None)
        if len(self.values[name]) > MOST_CATEGORIES:
            self.crowded.add(name)
            self.values[name].clear()

    def to_json(self) -> dict[str, Any]:
        """All values found so far; those of columns with too many are left out."""
        values = {name: list(values) for name, values in self.values.items()}
        return {"values": values, "crowded": sorted(self.crowded), "missing": sorted(self.missing)}

    def add_json(self, seen: Mapping[str, Any]) -> None:
        """Add what another `TextColumns` has found."""
        self.missing.update(seen["missing"])
        self.crowded.update(seen["crowded"])
        for name, values in seen["values"].items():
            self._add(name, values)

    def resolve(self, dtypes: Mapping[str, object], n_rows: int) -> dict[str, object]:
        """`dtypes`, with CategoricalDtype for text columns with repeated or missing values (as AnnData does).

        A column with more than MOST_CATEGORIES values stays text, with a mask if values are missing.
        """
        resolved = dict(dtypes)
        for name, values in self.values.items():
            if name in self.crowded:
                resolved[name] = STRING if name in self.missing else TEXT
            elif len(values) <= n_rows / 2 or name in self.missing:
                resolved[name] = pd.CategoricalDtype(pd.Index(sorted(values), dtype=object))
        return resolved


def encode_text(values: np.ndarray) -> tuple[np.ndarray, bytes]:
    """Texts as (int32 [values]: bytes of each in UTF-8, -1 where missing; the bytes of all of them, joined)."""
    encoded = [None if text is None else text.encode() for text in values]
    lengths = np.array([-1 if text is None else len(text) for text in encoded], np.int32)
    return lengths, b"".join(text for text in encoded if text is not None)


def decode_text(lengths: np.ndarray, content: bytes) -> np.ndarray:
    """The texts that `encode_text` encoded: objects, None where missing."""
    ends = np.cumsum(np.maximum(lengths, 0), dtype=np.int64).tolist()
    texts = [None if n < 0 else content[end - n : end].decode() for n, end in zip(lengths.tolist(), ends)]
    return np.array([*texts, None], object)[:-1]  # without None, numpy would make fixed-width text of equal lengths


def encode_record(record: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    """A record as bytes, piece by piece: a header that describes its arrays, then each; those of objects hold text."""
    header, texts = [], dict[str, tuple[np.ndarray, bytes]]()
    for name, array in record.items():
        if array.dtype == TEXT:
            texts[name] = encode_text(array)
            header.append([name, "str", [len(array), len(texts[name][1])]])
        else:
            header.append([name, array.dtype.str, list(array.shape)])
    head = json.dumps(header).encode()
    yield len(head).to_bytes(4, "little") + head
    for name, array in record.items():
        if name in texts:
            yield texts[name][0].astype("<i4").tobytes()
            yield texts[name][1]
        else:
            yield np.ascontiguousarray(array).tobytes()


def record_to_bytes(record: Mapping[str, np.ndarray]) -> bytes:
    """What `encode_record` gives, as a whole."""
    return b"".join(encode_record(record))


def records_from_bytes(data: np.ndarray) -> list[dict[str, np.ndarray]]:
    """All records that are joined in uint8 [bytes]."""
    at, records = 0, list[dict[str, np.ndarray]]()
    while at < len(data):
        size = int.from_bytes(data[at : at + 4].tobytes(), "little")
        header = json.loads(data[at + 4 : at + 4 + size].tobytes())
        at += 4 + size
        records.append({})
        for name, dtype, shape in header:
            if dtype == "str":
                n, n_bytes = shape
                lengths = np.frombuffer(data[at : at + 4 * n], "<i4")
                records[-1][name] = decode_text(lengths, data[at + 4 * n : at + 4 * n + n_bytes].tobytes())
                at += 4 * n + n_bytes
            else:
                n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
                records[-1][name] = np.frombuffer(data[at : at + n_bytes], dtype).reshape(shape)
                at += n_bytes
    return records
