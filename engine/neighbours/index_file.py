"""The index of a minified store's latents, as files in a folder, opened without reading the cells.

    MINI.neighbours/
      index.json       format version, sizes, which latents it is of, the measured recalls; carries its own checksum
      centroids.npy    float32 [lists, latent]
      low.npy, step.npy  float32 [lists, latent]: how the cells of a list are coded (see scanning.py)
      starts.npy       int64 [lists + 1]: the places of the cells of each list
      checksums.npy    uint32 [lists]: crc32c of the content of a list, compared when it is first searched
      codes.npy        uint8 [cells, latent]
      cells.npy        uint32 [cells]: which cell of the store is at a place, ascending in each list
      manifest.json    bytes and checksums of all files, written last

With 20 latent dimensions that is 24 bytes for a cell, and 0.2 for its share of a list. The large arrays are mapped into
memory, so that only the lists that are searched are read.
"""

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import google_crc32c
import numpy as np

from atlasvi.engine.minified.kept_posterior import LATENTS
from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.manifest import check_files, read_json, read_manifest
from atlasvi.loaders.outputs import remove_leftovers
from atlasvi.loaders.places.byte_files import open_file
from atlasvi.loaders.places.object_path import ObjectPath, to_place
from atlasvi.loaders.store_files import check_version

FORMAT_VERSION = 1
HEADER = "index.json"
LARGE = ("codes", "cells")
IDENTITY_SLICES, IDENTITY_ROWS, TAIL_BYTES = 8, 32, 16


class Latents(Protocol):
    """What an index is made of: a `KeptPosterior`, or anything else with these."""

    path: str
    n_cells: int
    n_latent: int

    def read_latent(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """qzm and qzv, float32 [stop - start, latent], of cells [start, stop)."""


@dataclass(frozen=True)
class Header:
    """What is known of an index without its arrays.

    identity      of the latents that it was made from (see `identify_latents`)
    ks, probes    the numbers of neighbours, and of lists searched, for which the recall was measured
    recalls       [ks, probes]: share of the k nearest cells that were found, for a sample of the store's cells
    """

    n_cells: int
    n_latent: int
    n_lists: int
    identity: str
    ks: tuple[int, ...]
    probes: tuple[int, ...]
    recalls: tuple[tuple[float, ...], ...]

    def to_record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}


def name_index(path: str | Path) -> Path:
    """Where the index of minified data is: beside it, so that the data stays as it was written.

    Of data in a bucket it is in the working folder.
    """
    place = to_place(path)
    return (Path() if isinstance(place, ObjectPath) else place.parent) / f"{place.name}.neighbours"


def identify_latents(store: Latents) -> str:
    """Text that another store, or an older version of this one, does not have: of the content of the latents alone.

    It is of the latents of 256 cells all over the data and, of a store, of its list of their files, with the last bytes
    of each: lists of older versions have the crc32c of a file, which is the same number for all chunks of Zarr of one
    size (see loaders/manifest.py).
    """
    checksum = google_crc32c.Checksum()
    for start in np.linspace(0, max(store.n_cells - IDENTITY_ROWS, 0), IDENTITY_SLICES).astype(int).tolist():
        for part in store.read_latent(start, min(start + IDENTITY_ROWS, store.n_cells)):
            checksum.update(np.ascontiguousarray(part, "<f4").tobytes())
    checksum.update(identify_files(store.path, [f"obsm/{array}/" for array in LATENTS]))
    return f"{checksum.hexdigest().decode()} {store.n_cells} x {store.n_latent}"


def identify_files(path: str, prefixes: Sequence[str]) -> bytes:
    """What a store's list says of the files whose names begin so, with the last bytes of each; empty without a list."""
    folder, found = to_place(path), [b""]
    files = (read_manifest(folder) if folder.is_dir() else None) or {}
    for name in sorted(name for name in files if name.startswith(tuple(prefixes))):
        tail = np.empty(min(files[name][0], TAIL_BYTES), np.uint8)
        open_file(folder / name).read_into(files[name][0] - len(tail), tail)
        found.append(f"{name} {files[name]} ".encode() + tail.tobytes())
    return b"".join(found)


class IndexFile:
    """An opened index. Raises SourceError if it is damaged, of a newer format, or of other latents than the store's.

    store  whose latents the index must be of; None: not compared
    """

    def __init__(self, path: str | Path, store: Latents | None = None) -> None:
        self.path = str(path)
        remove_leftovers(path)
        folder = Path(path)
        record = read_json(folder / HEADER, older=False)
        check_version(self.path, "index", record, FORMAT_VERSION)
        with reading(self.path):
            files = read_manifest(folder)
            if files is None:
                raise SourceError(f"{folder}: its manifest.json is missing. {_rebuild(store)}")
            check_files(folder, files, lambda name: not name.startswith(LARGE))
            self.header = Header(**{name: _to_tuples(record[name]) for name in Header.__dataclass_fields__})
            load = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in LARGE}
            self.codes, self.cells = (load[name] for name in LARGE)
            names = "centroids", "low", "step", "starts", "checksums"
            small = [np.load(folder / f"{name}.npy", allow_pickle=False) for name in names]
            self.centroids, self.low, self.step, self.starts, self.checksums = small
            self._check_shapes()
        self._checked = np.zeros(self.header.n_lists, bool)
        self._lock = threading.Lock()
        if store is not None and self.header.identity != identify_latents(store):
            raise SourceError(
                f"{path}: this index is not of the latents of {store.path} as they are now: it is of another store, or "
                f"of an older version of this one. {_rebuild(store)}"
            )

    def check_lists(self, numbers: np.ndarray) -> None:
        """Compare lists, of these numbers, with their checksums, each once. Raises SourceError if one is damaged."""
        with self._lock:
            for number in numbers[~self._checked[numbers]].tolist():
                here = slice(self.starts[number], self.starts[number + 1])
                checksum = checksum_list(self.codes[here], self.cells[here])
                if checksum != self.checksums[number] or (self.cells[here] >= self.header.n_cells).any():
                    raise SourceError(
                        f"{self.path}: list {number} of the index is damaged: remove the folder, and build it again: "
                        "atlasvi index MINI."
                    )
                self._checked[number] = True

    def _check_shapes(self) -> None:
        """Raise ValueError unless the arrays have the shapes and types of the header: compiled code relies on them."""
        n_cells, n_latent, n_lists = self.header.n_cells, self.header.n_latent, self.header.n_lists
        of_lists = [(array, np.float32, (n_lists, n_latent)) for array in (self.centroids, self.low, self.step)]
        expected: list[tuple[np.ndarray, Any, tuple[int, ...]]] = [
            *of_lists,
            (self.starts, np.int64, (n_lists + 1,)),
            (self.checksums, np.uint32, (n_lists,)),
            (self.codes, np.uint8, (n_cells, n_latent)),
            (self.cells, np.uint32, (n_cells,)),
        ]
        for array, dtype, shape in expected:
            if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
                raise ValueError(f"an array has shape {array.shape} and type {array.dtype}, not {shape}")
        if self.starts[0] != 0 or self.starts[-1] != n_cells or (np.diff(self.starts) < 0).any():
            raise ValueError("the lists do not follow each other")


def checksum_list(codes: np.ndarray, cells: np.ndarray) -> int:
    """crc32c of the content of a list."""
    return google_crc32c.extend(google_crc32c.value(codes.tobytes()), cells.tobytes())


def _rebuild(store: Latents | None) -> str:
    place = "MINI" if store is None else store.path
    return f"Remove the folder, and build the index again: atlasvi index {place}."


def _to_tuples(value: Any) -> Any:
    return tuple(map(_to_tuples, value)) if isinstance(value, list) else value
