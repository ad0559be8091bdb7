"""The address of an object, or of a folder of objects, with methods of `pathlib.Path` that reading and writing need."""

import fnmatch
import io
import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.places.addresses import Address, parse_address, restore_address
from atlasvi.loaders.places.connections import share_threads
from atlasvi.loaders.places.objects import (
    ObjectStatus,
    find_cached,
    list_below,
    list_folder,
    read_status,
    read_whole,
    together,
)
from atlasvi.loaders.places.requests import NoPermissionError
from atlasvi.loaders.places.storage import Storage, usual_storage
from atlasvi.loaders.places.written_objects import remove_objects, write_object

KEPT_BYTES = 2**24  # of small objects that are kept in memory while a folder is open
LARGEST_KEPT = 2**20


class Listing:
    """The objects below a folder as they were when it was opened, and the content of small ones that were read.

    All that is read through it is of the versions that it lists, and names that are not in it need no request.
    """

    def __init__(self, folder: Address, storage: Storage) -> None:
        self.folder, self.objects = folder, list_below(folder, storage)
        self._names = sorted(self.objects)
        self._kept: dict[str, bytes] = {}
        self._room, self._lock = KEPT_BYTES, threading.Lock()

    def name(self, address: Address) -> str:
        """The name of an object, or a folder, in the folder."""
        return address.key.removeprefix(self.folder.key).strip("/")

    def has_folder(self, address: Address) -> bool:
        """Whether there are objects below an address."""
        return bool(self.list_names(f"{name}/" if (name := self.name(address)) else ""))

    def list_names(self, prefix: str) -> list[str]:
        """The names of all objects that begin so, in order."""
        low, high = bisect_left(self._names, prefix), bisect_left(self._names, f"{prefix}\U0010ffff")
        return self._names[low:high]

    def read(self, address: Address, storage: Storage) -> bytes:
        """The content of an object. Raises FileNotFoundError, StorageError."""
        name = self.name(address)
        if (content := self._kept.get(name)) is not None:
            return content
        status = self.find(address)
        if (cached := find_cached(address, storage, status)) is not None:
            content = cached.read(0, status.st_size).tobytes()
        else:
            content, _ = read_whole(address, storage, status)
        with self._lock:
            if len(content) <= min(LARGEST_KEPT, self._room) and name not in self._kept:
                self._kept[name] = content
                self._room -= len(content)
        return content

    def find(self, address: Address) -> ObjectStatus:
        """Size and version of an object. Raises FileNotFoundError."""
        if (status := self.objects.get(self.name(address))) is None:
            raise FileNotFoundError(2, "there is no such object", str(address))
        return status


class ObjectPath:
    """An address; `folder / name` is that of an object, or a folder, in it.

    storage  how the bucket is reached
    listing  of an opened folder above or at this address (see `opened`), else None
    Methods have the names and meanings of those of `Path`; requests that fail raise StorageError.
    """

    def __init__(self, address: Address, storage: Storage, listing: Listing | None = None) -> None:
        self.address, self.storage, self._listing = address, storage, listing

    def __str__(self) -> str:
        return str(self.address)

    def __repr__(self) -> str:
        return f"ObjectPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and (self.address, self.storage) == (other.address, other.storage)

    def __hash__(self) -> int:
        return hash((self.address, self.storage))

    def __lt__(self, other: "ObjectPath") -> bool:
        return str(self) < str(other)

    def __truediv__(self, name: str) -> "ObjectPath":
        return ObjectPath(self.address.join(str(name)), self.storage, self._listing)

    @property
    def name(self) -> str:
        """The last part of the address."""
        return PurePosixPath(self.address.key).name or self.address.bucket

    @property
    def suffix(self) -> str:
        """The ending of the name, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "ObjectPath":
        """The folder that this is in."""
        key = self.address.key.rpartition("/")[0]
        return ObjectPath(Address(self.address.scheme, self.address.bucket, key), self.storage)

    def with_suffix(self, suffix: str) -> "ObjectPath":
        """The same with another ending."""
        return self.parent / f"{self.name.removesuffix(self.suffix)}{suffix}"

    def absolute(self) -> "ObjectPath":
        """Itself: an address does not depend on the folder that a process runs in."""
        return self

    def opened(self) -> "ObjectPath":
        """The same folder with a list of its objects as they are now: one or a few requests, which save many.

        A web server has no lists: there each question is a request.
        """
        return ObjectPath(self.address, self.storage, Listing(self.address, self.storage)) if self.is_listable else self

    @property
    def is_listable(self) -> bool:
        """Whether the objects of a folder can be listed."""
        return self.address.is_listable

    def stat(self) -> ObjectStatus:
        """Size and version. Raises FileNotFoundError, also for a bucket itself."""
        if not self.address.key:
            raise FileNotFoundError(2, "it is a bucket and no object", str(self))
        return self._listing.find(self.address) if self._listing else read_status(self.address, self.storage)

    def is_file(self) -> bool:
        """Whether it is an object, as far as one may know: it is none for who may not read it."""
        try:
            self.stat()
        except (FileNotFoundError, NoPermissionError):
            return False
        return True

    def is_dir(self) -> bool:
        """Whether it is a folder: there are objects below it, and it is none. A web server's folders are not known."""
        if self._listing:
            return self._listing.has_folder(self.address)
        # the object is asked for first, since it may be readable in a bucket that may not be listed
        return self.is_listable and not self.is_file() and any(list_folder(self.address, self.storage))

    def exists(self) -> bool:
        """Whether it is an object or a folder."""
        return self.is_file() or self.is_dir()

    def read_bytes(self) -> bytes:
        """The whole content. Raises FileNotFoundError."""
        if self._listing:
            return self._listing.read(self.address, self.storage)
        return read_whole(self.address, self.storage)[0]

    def read_text(self) -> str:
        """The whole content as UTF-8 text. Raises FileNotFoundError, UnicodeDecodeError."""
        return self.read_bytes().decode()

    def open(self, mode: str = "rb") -> BinaryIO:
        """The content as a file of bytes, read ahead. Raises FileNotFoundError."""
        from atlasvi.loaders.places.streams import ObjectStream  # imports this file

        assert mode == "rb"
        if self._listing and self._listing.find(self.address).st_size <= LARGEST_KEPT:
            return io.BytesIO(self.read_bytes())
        return io.BufferedReader(ObjectStream(self))

    def write_bytes(self, content: bytes | memoryview) -> None:
        """Write the object whole, in place of what is there."""
        write_object(self.address, self.storage, content)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing is done: a folder is there as soon as an object in it is."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object; that it does not exist is no error."""
        remove_objects(self.parent.address, self.storage, [self.name])

    def remove_below(self) -> None:
        """Remove all objects below the folder."""
        remove_objects(self.address, self.storage)

    def iterdir(self) -> Iterator["ObjectPath"]:
        """What is in the folder, in order."""
        if self._listing is not None:
            names = {name.partition("/")[0] for name in self.list_names()}
        else:
            folders, objects = list_folder(self.address, self.storage)
            names = {*folders, *objects}
        return (self / name for name in sorted(names))

    def glob(self, pattern: str) -> Iterator["ObjectPath"]:
        """What is in the folder, not below, with a name that fits a pattern."""
        return (place for place in self.iterdir() if fnmatch.fnmatchcase(place.name, pattern))

    def list_sizes(self) -> dict[str, int]:
        """Bytes of all objects below the folder, by their names in it."""
        return {name: status.st_size for name, status in self._find_below("").items()}

    def list_versions(self) -> dict[str, ObjectStatus]:
        """Size and version of the object, called '', or of all objects below the folder by their names in it."""
        try:
            return {"": self.stat()}
        except FileNotFoundError:
            return self._find_below("") if self.is_listable else {}

    def list_names(self, prefix: str = "") -> list[str]:
        """The names of all objects below the folder that begin so."""
        return list(self._find_below(prefix))

    def _find_below(self, prefix: str) -> dict[str, ObjectStatus]:
        if self._listing is None:
            found = list_below(self.address, self.storage)
            return {name: found[name] for name in sorted(found) if name.startswith(prefix)}
        below = self._listing.name(self.address)
        above = f"{below}/" if below else ""
        names = self._listing.list_names(f"{above}{prefix}")
        return {name[len(above) :]: self._listing.objects[name] for name in names}

    def read_ahead(self, names: Iterable[str]) -> None:
        """Read small objects of an opened folder that will be needed, many at a time, as far as memory is for them."""
        chosen, room = list[ObjectPath](), KEPT_BYTES
        for place in (self / name for name in names) if self._listing else ():
            if (size := place.stat().st_size) <= min(LARGEST_KEPT, room):
                chosen.append(place)
                room -= size
        together([place.read_bytes for place in chosen], share_threads())


Place = Path | ObjectPath
"""Where a file or a folder is."""


def to_place(path: "str | Path | ObjectPath", storage: Storage | None = None) -> Place:
    """The place that a path or an address names.

    storage  how a bucket is reached; None: the usual options (see `use_storage`)
    Raises SourceError for an address that can't be used.
    """
    if isinstance(path, ObjectPath):
        return path
    parsed = parse_address(restore_address(path))
    if not isinstance(parsed, Address):
        return parsed
    return ObjectPath(parsed, usual_storage() if storage is None else storage)


def need_local(path: "str | Path | ObjectPath", what: str) -> Path:
    """The path of what must be on local disk. Raises SourceError for an address; what: what can't be done there."""
    if not isinstance(place := to_place(path), Path):
        raise SourceError(f"{path}: {what} on local disk alone: copy it there.")
    return place


def open_folder(path: "str | Path | ObjectPath", storage: Storage | None = None) -> Place:
    """The place of a folder from which many files will be read: of an address, with a list of its objects."""
    place = to_place(path, storage)
    return place.opened() if isinstance(place, ObjectPath) else place


def name_bucket(path: "str | Path | ObjectPath") -> str | None:
    """The beginning of an address up to its bucket; None for a local path."""
    address = path.address if isinstance(path, ObjectPath) else parse_address(restore_address(path))
    return f"{address.scheme}://{address.bucket}" if isinstance(address, Address) else None


def is_remote(path: "str | Path | ObjectPath") -> bool:
    """Whether a path is the address of an object store or a web server."""
    return name_bucket(path) is not None
