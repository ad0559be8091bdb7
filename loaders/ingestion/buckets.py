"""Rows sorted into buckets on disk, so that an atlas can be put into another order in bounded memory."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

BUFFER_BYTES = 32 * 2**20


class Buckets:
    """Appends records of rows to numbered buckets; a bucket is read back whole, its records joined.

    A record is a dictionary of arrays; arrays of objects hold str or None and are kept as UTF-8. Small records are
    gathered in memory (32 MB in all) and written together, so that many buckets do not mean many small writes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self._pending: dict[int, list[bytes]] = {}
        self._pending_bytes = 0

    def append(self, bucket: int, record: Mapping[str, np.ndarray]) -> None:
        """Add a record; the first axis of the arrays need not agree."""
        parts = record_to_bytes(record)
        self._pending.setdefault(bucket, []).extend(parts)
        self._pending_bytes += sum(map(len, parts))
        if self._pending_bytes > BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is held in memory."""
        for bucket, parts in self._pending.items():
            with open(self.folder / str(bucket), "ab") as file:
                file.writelines(parts)
        self._pending, self._pending_bytes = {}, 0

    def read(self, bucket: int) -> dict[str, np.ndarray]:
        """The arrays of one bucket, its records joined along the first axis; empty if nothing was appended."""
        self.flush()
        path = self.folder / str(bucket)
        if not path.exists():
            return {}
        # the file is mapped, not read: a second copy of the bucket would double the memory
        records = records_from_bytes(np.memmap(path, np.uint8, "r"))
        return {name: np.concatenate([record[name] for record in records]) for name in records[0]}

    def discard(self, bucket: int) -> None:
        """Free the disk space of a bucket that was read."""
        (self.folder / str(bucket)).unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete all buckets."""
        shutil.rmtree(self.folder, ignore_errors=True)


def record_to_bytes(record: Mapping[str, np.ndarray]) -> list[bytes]:
    """A record as it is kept, in parts."""
    header, parts = [], []
    for name, array in record.items():
        if array.dtype.kind == "O":
            encoded = [None if text is None else text.encode() for text in array]
            lengths = np.array([-1 if text is None else len(text) for text in encoded], "<i4")
            text = b"".join(text for text in encoded if text is not None)
            parts += [lengths.tobytes(), text]
            header.append([name, "str", [len(array), len(text)]])
        else:
            parts.append(np.ascontiguousarray(array).tobytes())
            header.append([name, array.dtype.str, list(array.shape)])
    head = json.dumps(header).encode()
    return [len(head).to_bytes(4, "little"), head, *parts]


def records_from_bytes(data: np.ndarray) -> list[dict[str, np.ndarray]]:
    """All records that stand one after the other in uint8 [bytes]."""
    at, records = 0, []
    while at < len(data):
        size = int.from_bytes(data[at : at + 4].tobytes(), "little")
        header = json.loads(data[at + 4 : at + 4 + size].tobytes())
        at, record = at + 4 + size, {}
        for name, dtype, shape in header:
            if dtype == "str":
                n, n_bytes = shape
                lengths = np.frombuffer(data[at : at + 4 * n], "<i4")
                text = data[at + 4 * n : at + 4 * n + n_bytes].tobytes()
                at += 4 * n + n_bytes
                ends = np.cumsum(np.maximum(lengths, 0), dtype=np.int64)
                array = np.empty(n, object)
                array[:] = [
                    None if length < 0 else text[end - length : end].decode()
                    for end, length in zip(ends.tolist(), lengths.tolist())
                ]
            else:
                n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
                array = np.frombuffer(data[at : at + n_bytes], dtype).reshape(shape)
                at += n_bytes
            record[name] = array
        records.append(record)
    return records
