"""Requests that change a bucket: an object written, copied within its bucket, or removed; a folder removed.

An object appears whole or not at all, and is written from the beginning when a request fails.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.places.addresses import Address
from atlasvi.loaders.places.connections import connect, import_obstore, share_threads
from atlasvi.loaders.places.objects import list_below, together, traffic
from atlasvi.loaders.places.requests import request
from atlasvi.loaders.places.storage import Storage

PART_BYTES = 2**23  # of an object that is sent in parts, which is limited to 10,000 parts: objects of up to 80 GB
PARTS_TOGETHER = 4
REMOVED_TOGETHER = 1000  # by one request


def write_object(address: Address, storage: Storage, content: bytes | memoryview | Path) -> None:
    """Write an object: a reader sees the former content, or none, until all of the new one is there.

    content  its bytes, or a local file
    Raises SourceError for a place where nothing can be written, StorageError.
    """
    if not address.is_listable:
        raise SourceError(f"{address}: nothing is written to a web server: give a path, or an address in a bucket.")
    if not address.key:
        raise SourceError(f"{address}: the address names a bucket and no object in it.")
    obstore, store = import_obstore(address), connect(address, storage)
    file = content if isinstance(content, (Path, bytes)) else bytes(content)

    def ask() -> None:
        traffic.requests += 1
        obstore.put(store, address.key, file, chunk_size=PART_BYTES, max_concurrency=PARTS_TOGETHER)

    request(str(address), ask, "written")


def copy_object(source: Address, target: Address, storage: Storage) -> None:
    """Copy an object within its bucket; the bucket does it. Raises FileNotFoundError, StorageError."""
    obstore, store = import_obstore(source), connect(source, storage)

    def ask() -> None:
        traffic.requests += 1
        obstore.copy(store, source.key, target.key)

    request(str(target), ask, "written")


def copy_objects(source: Address, target: Address, storage: Storage, names: Iterable[str]) -> None:
    """Copy the objects of these names from one folder to another of the same bucket, many at a time."""
    calls = [partial(copy_object, source.join(name), target.join(name), storage) for name in names]
    together(calls, share_threads())


def lift_folder(folder: Address, name: str, storage: Storage) -> None:
    """Put what is in a folder of a folder in the place of the outer one, whose other objects are removed."""
    there = list(list_below(folder, storage))
    inner = [each.removeprefix(f"{name}/") for each in there if each.startswith(f"{name}/")]
    copy_objects(folder.join(name), folder, storage, inner)
    remove_objects(folder, storage, set(there) - set(inner))


def remove_objects(folder: Address, storage: Storage, names: Iterable[str] | None = None) -> None:
    """Remove the objects of these names from a folder, or all that are below it; those that do not exist are skipped.

    Raises StorageError.
    """
    obstore, store = import_obstore(folder), connect(folder, storage)
    keys = [folder.join(name).key for name in (list_below(folder, storage) if names is None else names)]

    def ask(keys: list[str]) -> None:
        traffic.requests += 1
        try:
            obstore.delete(store, keys)
        except FileNotFoundError:  # said by clouds that remove one at a time
            if len(keys) > 1:
                for key in keys:
                    ask([key])

    for at in range(0, len(keys), REMOVED_TOGETHER):
        request(str(folder), partial(ask, keys[at : at + REMOVED_TOGETHER]), "written")
