"""One request about an object or a folder: its size and version, a part of its bytes, the names below."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.places.addresses import Address
from atlasvi.loaders.places.cached_parts import CachedObject, name_object
from atlasvi.loaders.places.connections import connect, find_endpoint, import_obstore, in_flight
from atlasvi.loaders.places.disk_cache import find_cache
from atlasvi.loaders.places.requests import ChangedError, CutShortError, is_out_of_range, request
from atlasvi.loaders.places.storage import Storage


@dataclass(frozen=True, slots=True)  # there is one for each object of an opened folder
class ObjectStatus:
    """An object's size in bytes, and its version: the ETag without quotes, or the date of its last change.

    is_tag  whether the version is an ETag that a request can name, so that the server refuses another version
    """

    st_size: int
    version: str
    is_tag: bool = True


@dataclass
class Traffic:
    """How many requests this process has sent, how many bytes it was given, and how many the disk cache had."""

    requests: int = 0
    n_bytes: int = 0
    kept_bytes: int = 0


traffic = Traffic()
_lock = threading.Lock()


def _count(n_bytes: int = 0) -> None:
    with _lock:
        traffic.requests += 1
        traffic.n_bytes += n_bytes


def read_status(address: Address, storage: Storage) -> ObjectStatus:
    """Size and version. Raises FileNotFoundError, StorageError."""
    obstore, store = import_obstore(address), _open_object(address, storage)

    def ask() -> ObjectStatus:
        _count()
        return _make_status(obstore.head(store, address.key))

    return request(str(address), ask)


def read_whole(address: Address, storage: Storage, expected: ObjectStatus | None = None) -> tuple[bytes, ObjectStatus]:
    """(content, status) of an object. Raises FileNotFoundError; StorageError, also if it is of another version."""
    obstore, store = import_obstore(address), _open_object(address, storage)
    # An answer to a request for a range says how long the object is, besides how long the answer is: so a short one is
    # noticed. (A web server need not answer such requests.)
    whole = {"range": {"offset": 0}} if address.is_listable else {}
    version = _name_version(address, expected)

    def ask() -> tuple[bytes, ObjectStatus]:
        with in_flight:
            try:
                answer = obstore.get(store, address.key, options={**whole, **version})
            except Exception as error:
                if not is_out_of_range(error):
                    raise
                answer = obstore.get(store, address.key, options=version)  # an empty object has no byte to begin with
            status = _make_status(answer.meta)
            _check_version(status, expected)
            content = bytes(answer.bytes())
        _count(len(content))
        if len(content) != status.st_size:
            raise CutShortError(f"{len(content):,} of {status.st_size:,} bytes came")
        return content, status

    return request(str(address), ask)


def read_part(address: Address, storage: Storage, expected: ObjectStatus, start: int, stop: int) -> Any:
    """Bytes [start, stop) of a version of an object, as a buffer. Raises FileNotFoundError, StorageError."""
    obstore, store = import_obstore(address), _open_object(address, storage)

    def ask() -> Any:
        options = {"range": (start, stop), **_name_version(address, expected)}
        with in_flight:
            answer = obstore.get(store, address.key, options=options)
            _check_version(_make_status(answer.meta), expected)
            content = answer.bytes()
        _count(len(content))
        if tuple(answer.range) != (start, stop) or len(content) != stop - start:
            raise CutShortError(f"{len(content):,} of {stop - start:,} bytes came")
        return content

    return request(str(address), ask)


def find_cached(address: Address, storage: Storage, expected: ObjectStatus) -> CachedObject | None:
    """A version of an object as the disk cache keeps it; None if there is no cache.

    Only what has an ETag, which says that it is the same, is kept.
    """
    cache = find_cache() if expected.is_tag and expected.st_size else None
    if cache is None:
        return None
    name = name_object(address, find_endpoint(address, storage), expected.version, expected.st_size)
    fetch = partial(read_part, address, storage, expected)
    return CachedObject(cache, name, expected.st_size, fetch, _count_kept)


def _count_kept(n_bytes: int) -> None:
    with _lock:
        traffic.kept_bytes += n_bytes


def list_below(address: Address, storage: Storage) -> dict[str, ObjectStatus]:
    """All objects below a folder, at any depth, by their names in it.

    Raises StorageError, and SourceError for a folder of a web server.
    """
    obstore, store = import_obstore(address), _open_listable(address, storage)
    prefix = f"{address.key}/" if address.key else ""

    def ask() -> dict[str, ObjectStatus]:
        found = {}
        for part in obstore.list(store, address.key or None, chunk_size=1000):
            _count()
            found.update({meta["path"].removeprefix(prefix): _make_status(meta) for meta in part})
        return found

    return request(str(address), ask)


def list_folder(address: Address, storage: Storage) -> tuple[list[str], dict[str, ObjectStatus]]:
    """(names of the folders in a folder, objects in it by their names). Raises as `list_below`."""
    obstore, store = import_obstore(address), _open_listable(address, storage)
    prefix = f"{address.key}/" if address.key else ""

    def ask() -> tuple[list[str], dict[str, ObjectStatus]]:
        found = obstore.list_with_delimiter(store, address.key or None)
        _count()
        folders = sorted(str(name).rstrip("/").removeprefix(prefix) for name in found["common_prefixes"])
        return folders, {meta["path"].removeprefix(prefix): _make_status(meta) for meta in found["objects"]}

    return request(str(address), ask)


def together(calls: Sequence[Callable[[], Any]], threads: Any) -> list[Any]:
    """What several calls return that wait for answers: the first is called here, the others in threads meanwhile."""
    if not calls:
        return []
    waiting = [threads.submit(call) for call in calls[1:]]
    try:
        return [calls[0](), *[future.result() for future in waiting]]
    finally:
        for future in waiting:  # after an error nothing may still write into the caller's memory
            if not future.cancel():
                future.exception()


def _open_object(address: Address, storage: Storage) -> Any:
    if not address.key:
        raise SourceError(f"{address}: the address names a bucket and no object in it.")
    return connect(address, storage)


def _open_listable(address: Address, storage: Storage) -> Any:
    if not address.is_listable:
        raise SourceError(
            f"{address}: a web server does not list the files of a folder; give the address of one file, or copy the "
            "folder to this machine or into a bucket."
        )
    return connect(address, storage)


def _make_status(meta: Any) -> ObjectStatus:
    # clouds put quotes around an ETag in one answer and leave them out in another
    tag = (meta["e_tag"] or "").strip('"')
    version = tag or f"{meta['last_modified']:%Y-%m-%dT%H:%M:%S}"
    return ObjectStatus(int(meta["size"]), version, bool(tag) and not tag.startswith("W/"))


def _name_version(address: Address, expected: ObjectStatus | None) -> dict[str, str]:
    """The option of a request that only an object of this version answers; the clouds compare it, not every server."""
    named = expected is not None and expected.is_tag and address.is_listable
    return {"if_match": f'"{expected.version}"'} if expected is not None and named else {}


def _check_version(found: ObjectStatus, expected: ObjectStatus | None) -> None:
    if expected is not None and found.version != expected.version:
        raise ChangedError
    if expected is not None and found.st_size != expected.st_size:  # the same version: the answer is wrong
        raise CutShortError(f"{found.st_size:,} of {expected.st_size:,} bytes were announced")
