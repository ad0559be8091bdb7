"""Files that grow by lines while others read them, such as the metrics of a run: on local disk, or in a bucket."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TextIO

from atlasvi.loaders.places.object_path import ObjectPath, Place


def open_lines(place: Place) -> "TextIO | ObjectLines":
    """A file to append lines of text to; each is there soon after it was written."""
    return ObjectLines(place) if isinstance(place, ObjectPath) else open(place, "a", buffering=1)


class ObjectLines:
    """Lines that are appended to an object, which is written again, whole, on a thread, when lines have been added.

    While it is being written, more lines wait for the next time: the caller never does.
    """

    def __init__(self, place: ObjectPath) -> None:
        self.name, self._place = str(place), place
        self._text = place.read_text() if place.is_file() else ""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="atlasvi-lines")
        self._writing: Future[None] | None = None

    def write(self, text: str) -> None:
        """Append text. Raises the StorageError of an earlier write."""
        self._text += text
        if self._writing is None or self._writing.done():
            self._finish()
            self._writing = self._thread.submit(self._place.write_bytes, self._text.encode())

    def close(self) -> None:
        """Write what is still waiting. Raises StorageError."""
        self._thread.shutdown()
        self._finish()
        self._place.write_bytes(self._text.encode())

    def _finish(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()
