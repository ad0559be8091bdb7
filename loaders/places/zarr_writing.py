"""Zarr groups that are written to a place: local folders, or the objects of a bucket."""

import asyncio
import zlib
from typing import Any

import zarr
from zarr.abc.store import Store
from zarr.core.buffer import Buffer

from atlasvi.loaders.places.connections import share_readers
from atlasvi.loaders.places.object_path import ObjectPath, Place
from atlasvi.loaders.places.zarr_stores import ObjectsStore


class WritableObjects(ObjectsStore):
    """The objects below an address as a Zarr store that can be written.

    written  bytes and checksum of each object that was written through it, by name, as lists of files have them
    """

    supports_writes = supports_deletes = True

    def __init__(self, place: ObjectPath) -> None:
        Store.__init__(self, read_only=False)
        self.place = place
        self.written: dict[str, tuple[int, str]] = {}

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object."""
        content = value.to_bytes()
        await asyncio.get_running_loop().run_in_executor(share_readers(), (self.place / key).write_bytes, content)
        self.written[key] = len(content), f"crc32:{zlib.crc32(content):08x}"

    async def delete(self, key: str) -> None:
        """Remove an object."""
        await asyncio.to_thread((self.place / key).unlink)
        self.written.pop(key, None)


def open_writable(place: Place, mode: Any = "r+") -> zarr.Group:
    """The Zarr group of a folder, to write to it. mode: 'w' for a new group in place of what is there, or 'r+'."""
    store = WritableObjects(place) if isinstance(place, ObjectPath) else place
    return zarr.open_group(store, mode=mode, zarr_format=3)


def list_written(group: zarr.Group) -> dict[str, tuple[int, str]]:
    """Bytes and checksum of the objects that were written through a group of a bucket; none on local disk."""
    return dict(group.store.written) if isinstance(group.store, WritableObjects) else {}
