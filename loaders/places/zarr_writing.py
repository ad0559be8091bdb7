"""Zarr groups that are written to a place: local folders, or the objects of a bucket."""

import asyncio
import zlib
from typing import Any

import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype

from atlasvi.loaders.places.connections import share_readers
from atlasvi.loaders.places.object_path import ObjectPath, Place
from atlasvi.loaders.places.zarr_stores import ObjectsStore

METADATA = "zarr.json"


class WritableObjects(ObjectsStore):
    """The objects below an address as a Zarr store that can be written, by this process alone as far as it is metadata.

    is_new   whether nothing is there but what is written through it
    written  bytes and checksum of each object that was written through it, by name, as lists of files have them
    Metadata is kept in memory, as Zarr reads it again and again: a request each time would take most of the time.
    """

    supports_writes = supports_deletes = True

    def __init__(self, place: ObjectPath, is_new: bool = False) -> None:
        Store.__init__(self, read_only=False)
        self.place, self._is_new = place, is_new
        self.written: dict[str, tuple[int, str]] = {}
        self.taken: set[str] = set()  # of these names, by `take_written`
        self._metadata: dict[str, bytes | None] = {}

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The bytes of an object, or a part of them; None if it does not exist."""
        if self._is_new and key not in self.written:
            return None
        if not key.endswith(METADATA) or byte_range is not None:
            return await super().get(key, prototype, byte_range)
        if key not in self._metadata:
            self._metadata[key] = await asyncio.get_running_loop().run_in_executor(share_readers(), self._find, key)
        content = self._metadata[key]
        return None if content is None else prototype.buffer.from_bytes(content)

    def _find(self, key: str) -> bytes | None:
        try:
            return (self.place / key).read_bytes()
        except FileNotFoundError:
            return None

    async def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return key in self.written or (not self._is_new and await super().exists(key))

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object."""
        content = value.to_bytes()
        await asyncio.get_running_loop().run_in_executor(share_readers(), (self.place / key).write_bytes, content)
        self.written[key] = len(content), f"crc32:{zlib.crc32(content):08x}"
        self.taken.discard(key)
        if key.endswith(METADATA):
            self._metadata[key] = content

    async def delete(self, key: str) -> None:
        """Remove an object."""
        await asyncio.to_thread((self.place / key).unlink)
        self.written.pop(key, None)
        self._metadata.pop(key, None)


def create_group(place: Place) -> zarr.Group:
    """A new Zarr group at a place, from which all that is there is removed."""
    if not isinstance(place, ObjectPath):
        return zarr.open_group(place, mode="w", zarr_format=3)
    place.remove_below()
    return zarr.create_group(WritableObjects(place, is_new=True), zarr_format=3)


def open_to_write(place: Place) -> zarr.Group:
    """The Zarr group of a folder, to write to it."""
    store: Any = WritableObjects(place) if isinstance(place, ObjectPath) else place
    return zarr.open_group(store, mode="r+", zarr_format=3)


def take_written(group: zarr.Group) -> dict[str, tuple[int, str]]:
    """Bytes and checksum of the objects that were written through a group of a bucket since this was last called."""
    if not isinstance(group.store, WritableObjects):
        return {}
    store = group.store
    found = {name: each for name, each in store.written.items() if name not in store.taken}
    store.taken |= found.keys()
    return found
