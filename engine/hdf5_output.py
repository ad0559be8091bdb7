"""HDF5 files written whole or not at all, on a disk that may be full."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

import h5py

from atlasvi.loaders.outputs import write_file_aside

Part = TypeVar("Part")


class Sink:
    """A file for HDF5 that remembers the first error and lets the library close in peace: left to itself on a full
    disk, it prints a page of errors and ends the process.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: OSError | None = None
        self.seek, self.tell, self.readinto = file.seek, file.tell, file.readinto  # type: ignore[attr-defined]
        self.flush, self.read, self.truncate = file.flush, file.read, file.truncate

    def write(self, content: bytes) -> int:
        """Write all of it, or nothing any more after an error."""
        rest = memoryview(content).cast("B")
        try:
            while self._error is None and len(rest):
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._error = error
        return len(content)

    def check(self) -> None:
        """Raises the first error, if there was one."""
        if self._error is not None:
            raise self._error

    def while_good(self, parts: Iterable[Part]) -> Iterator[Part]:
        """The same parts, until there is an error."""
        for part in parts:
            self.check()
            yield part


@contextmanager
def write_hdf5(out: str | Path) -> Iterator[tuple[h5py.File, Sink]]:
    """A new HDF5 file that becomes `out` at the end of the block, and the sink that its content goes into.

    Raises OutputError if `out` exists or can't be written (a full disk).
    """
    with write_file_aside(out) as aside, open(aside, "w+b", buffering=0) as disk:
        sink = Sink(disk)
        with h5py.File(sink, "w") as file:
            yield file, sink
        sink.check()
