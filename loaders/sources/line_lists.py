"""A long list of names in a text file, read by slices."""

import gzip
import io
import threading
from itertools import islice
from typing import BinaryIO, TextIO

from atlasvi.loaders.places.object_path import Place


class Lines:
    """Lines of a text file, plain or gzipped, that are not held in memory.

    Reading forward reads each line once; reading backward starts over at the top of the file.
    """

    def __init__(self, file: Place):
        self._file = file
        self._lock = threading.Lock()
        self._text = self._open()
        self._at = 0  # index of the next line of _text
        # A blank line inside the file is a missing name; blank lines at the end are ignored.
        self._n_lines = max((i for i, line in enumerate(self._text, 1) if line.strip()), default=0)
        self._restart()

    def __len__(self) -> int:
        return self._n_lines

    def read(self, start: int, stop: int) -> list[str]:
        """Lines [start, stop) without their ends."""
        with self._lock:
            if start < self._at:
                self._restart()
            lines = [line.rstrip("\r\n") for line in islice(self._text, start - self._at, stop - self._at)]
            self._at = max(self._at, stop)
        return lines

    def close(self) -> None:
        """Close the file."""
        self._text.close()

    def _open(self) -> TextIO:
        return open_text(self._file)

    def _restart(self) -> None:
        self._text.close()
        self._text, self._at = self._open(), 0


def open_text(file: Place) -> TextIO:
    """Open a text file, plain or gzipped by its first bytes; invalid UTF-8 becomes replacement characters.

    A byte order mark, which Excel writes, is removed; after that of UTF-16 the text is read as UTF-16.
    """
    text = open_bytes(file)
    encoding = "utf-16" if text.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text.seek(0)
    return io.TextIOWrapper(text, encoding=encoding, errors="replace")


def open_bytes(file: Place) -> BinaryIO:
    """Open a file, plain or gzipped by its first bytes: its name may be wrong (browsers and FTP clients unpack)."""
    content = file.open("rb")
    is_gzipped = content.read(2) == b"\x1f\x8b"
    content.seek(0)
    return _Unzipped(content) if is_gzipped else content  # type: ignore[return-value]


class _Unzipped(gzip.GzipFile):
    """The content of a gzipped file, which is closed with it."""

    def __init__(self, content: BinaryIO) -> None:
        super().__init__(fileobj=content)
        self.myfileobj = content  # type: ignore[assignment] # what `close` closes too
