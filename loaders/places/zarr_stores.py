"""Zarr groups of a place: opened by zarr-python for metadata and for what our own readers do not read."""

import asyncio
import threading
import zipfile
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, ZipStore

from atlasvi.loaders.errors import AtlasviError
from atlasvi.loaders.places.byte_files import PIECE_BYTES, RemoteFile
from atlasvi.loaders.places.connections import share_readers
from atlasvi.loaders.places.object_path import ObjectPath, Place


def open_group(place: Place) -> zarr.Group:
    """The Zarr group of a folder, read-only; an address should be one of `open_folder`, or each look is a request.

    Its consolidated metadata is not used: those copies may be wrong, and zarr confuses names that differ only in case.
    """
    store = ObjectsStore(place) if isinstance(place, ObjectPath) else place
    return zarr.open_group(store, mode="r", use_consolidated=False)


def open_zip(place: Place) -> ZipStore:
    """A zip as a Zarr store, read-only."""
    return ZippedObject(place) if isinstance(place, ObjectPath) else ZipStore(place, mode="r")


def find_folder(node: zarr.Array | zarr.Group) -> Place | None:
    """The folder of an array or a group; None if it is neither in a local folder nor in a bucket (a zip, memory)."""
    store = node.store
    if isinstance(store, LocalStore):
        return Path(str(store.root)) / node.path
    return store.place / node.path if isinstance(store, ObjectsStore) else None


class ObjectsStore(Store):
    """The objects below an address as a Zarr store, read-only. A request that fails raises StorageError."""

    supports_writes = supports_deletes = False
    supports_listing = True

    def __init__(self, place: ObjectPath) -> None:
        super().__init__(read_only=True)
        self.place = place

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectsStore) and self.place == other.place

    def __str__(self) -> str:
        return str(self.place)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The bytes of an object, or a part of them; None if it does not exist."""
        try:
            content = await asyncio.get_running_loop().run_in_executor(share_readers(), self._read, key, byte_range)
        except FileNotFoundError:
            return None
        return prototype.buffer.from_bytes(content)

    def _read(self, key: str, part: ByteRequest | None) -> bytes:
        place = self.place / key
        size = place.stat().st_size
        if part is None and size <= PIECE_BYTES:
            return place.read_bytes()
        start, stop = _find_range(part, size)
        out = np.empty(max(stop - start, 0), np.uint8)
        RemoteFile(place).read_into(start, out)  # long ones in pieces
        return out.tobytes()

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Parts of several objects."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return await asyncio.to_thread((self.place / key).is_file)

    async def list(self) -> AsyncIterator[str]:
        """The names of all objects."""
        async for name in self.list_prefix(""):
            yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """The names of all objects that begin so."""
        for name in await asyncio.to_thread(self.place.list_names, prefix):
            yield name

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """The names of the objects and folders in a folder."""
        folder = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        names = await asyncio.to_thread(self.place.list_names, folder)
        for name in dict.fromkeys(name[len(folder) :].partition("/")[0] for name in names):
            yield name

    async def set(self, key: str, value: Buffer) -> None:
        """Nothing is written here."""
        raise AtlasviError(f"{self.place}: it was opened to be read.")

    async def delete(self, key: str) -> None:
        """Nothing is removed here."""
        raise AtlasviError(f"{self.place}: it was opened to be read.")


def _find_range(part: ByteRequest | None, size: int) -> tuple[int, int]:
    """Where a part of an object of `size` bytes begins and ends."""
    if isinstance(part, RangeByteRequest):
        return part.start, min(part.end, size)
    if isinstance(part, OffsetByteRequest):
        return part.offset, size
    return (max(size - part.suffix, 0) if isinstance(part, SuffixByteRequest) else 0), size


class ZippedObject(ZipStore):
    """A zip in a bucket as a Zarr store, read-only."""

    def __init__(self, place: ObjectPath) -> None:
        super().__init__(Path(place.name), mode="r")
        self._place = place

    def _sync_open(self) -> None:
        self._lock = threading.RLock()
        self._zf = zipfile.ZipFile(self._place.open("rb"))
        self._is_open = True
