"""Checks of stored arrays before any of their values are read: reading must be safe, and the arrays complete.

A library may silently run a pickle, read another file of this machine, decode gigabytes for one chunk, or return zeros
for values that were never written or copied; here these are errors.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import h5py
import numpy as np
import zarr
from h5py import h5d, h5o, h5z

from atlasvi.loaders.arrays.missing_chunks import Node, can_be_zeros, find_missing_chunks
from atlasvi.loaders.errors import MissingDependencyError, SourceError
from atlasvi.loaders.places.zarr_stores import find_folder

LARGEST_CHUNK = 2**30  # bytes; libraries write chunks of some MB, and a chunk must be decoded whole

# All of these are known to be harmless. `pickle` is not among them, and an unknown codec may run any program.
SAFE_CODECS = {
    "bytes", "blosc", "zstd", "gzip", "zlib", "bz2", "lz4", "lzma", "crc32c", "crc32", "adler32", "fletcher32",
    "jenkins_lookup3", "transpose", "shuffle", "delta", "fixedscaleoffset", "quantize", "bitround", "packbits",
    "astype", "zfpy", "pcodec", "base64", "sharding_indexed", "vlen-utf8", "vlen-bytes", "vlen-array", "json2",
    "msgpack2", "categorize", "default",
}  # fmt: skip
HDF5_FILTERS = {
    307: "bzip2",
    32000: "lzf",
    32001: "blosc",
    32004: "lz4",
    32008: "bitshuffle",
    32013: "zfp",
    32015: "zstd",
    32017: "sz",
    32018: "fcidecomp",
    32024: "sz3",
    32026: "blosc2",
    32028: "sperr",
}  # fmt: skip  filters registered with the HDF Group; the package hdf5plugin has most of them


def is_array(node: Node) -> bool:
    """Whether the node is an h5py.Dataset or zarr.Array, not a group."""
    return hasattr(node, "shape")


def check_stored(path: str, root: Node, key: str, fill_missing: bool = False) -> list[str]:
    """Raise SourceError where an array at `key` of a file, or below it, can't be read safely or is incomplete.

    root          the file's group that contains `key`; `path` is the name of the file in errors
    fill_missing  read missing chunks as zeros, as the libraries do
    Returns the names of the arrays whose missing chunks are read as zeros, though they may have been lost.
    """
    zeros = []
    for name, node in walk_nodes(path, root, key):
        if is_array(node):
            check_safe(f"{path}: {name}", node)
            if not fill_missing and check_complete(path, name, node, root):
                zeros.append(name)
    return zeros


def walk_nodes(path: str, root: Node, key: str) -> Iterator[tuple[str, Node]]:
    """Yield (name, node) at `key` and below. Raises SourceError where an HDF5 link leads to another file."""
    node = check_inside(path, root, key)
    yield key, node
    if not is_array(node):
        for name in sorted(node):  # Zarr lists members in no fixed order
            yield from walk_nodes(path, root, f"{key}/{name}")


def check_inside(path: str, root: Node, key: str) -> Node:
    """The node at `key` of a file. Raises SourceError where a link leads to another HDF5 file."""
    if not isinstance(root, h5py.Group):
        return root[key]
    if isinstance(root.get(key, getlink=True), h5py.ExternalLink):
        raise leads_elsewhere(f"{path}: {key}")
    node = root[key]
    if h5o.get_info(node.id).fileno != h5o.get_info(root.id).fileno:
        raise leads_elsewhere(f"{path}: {key}")
    return node


def leads_elsewhere(what: str) -> SourceError:
    """The error for data that is in another file."""
    return SourceError(
        f"{what} lies in another file that this one points to, which is not followed; write it again as one file: "
        "anndata.read_h5ad(...).write_h5ad('whole.h5ad')."
    )


def check_safe(what: str, array: Node) -> None:
    """Raise SourceError where reading the array could run a program, read another file, or decode gigabytes at once.

    what  name of the array in errors. Raises MissingDependencyError where an HDF5 filter is not installed.
    """
    if isinstance(array, h5py.Dataset):
        if array.external or array.is_virtual:
            raise leads_elsewhere(what)
        check_filters(what, array)
        decoded_whole = bool(array.id.get_create_plist().get_nfilters())
    else:
        check_codecs(array)
        decoded_whole = True
    size = int(np.prod(array.chunks or (0,), dtype=object)) * array.dtype.itemsize
    if decoded_whole and size > LARGEST_CHUNK:
        raise SourceError(
            f"{what} is stored in chunks of {size / 1e9:,.1f} GB, each of which must be decoded as a whole; write it "
            "again in smaller chunks (anndata's default)."
        )


def check_codecs(array: zarr.Array) -> None:
    """Raise SourceError for a Zarr array with a codec that is not known to be safe, such as pickle."""
    _refuse_unsafe(str(array.store_path), array.metadata.to_dict())


def _refuse_unsafe(what: str, described: dict[str, Any]) -> None:
    for name in find_codecs([described.get(key) for key in ("filters", "compressor", "codecs")]):
        if name.removeprefix("numcodecs.").lower() not in SAFE_CODECS:
            how = (
                "as Python pickles, which can run any program when read"
                if "pickle" in name.lower()
                else f"with the codec {name!r}, which is not known to be safe"
            )
            raise SourceError(
                f"{what}: the array is stored {how}, and is refused; write the file again with a current anndata."
            )


def check_group_codecs(group: zarr.Group) -> None:
    """Raise SourceError where an array of a Zarr group, at any depth, has a codec that is not known to be safe.

    Consolidated copies of its metadata are checked too, since other readers use them.
    """
    for _, node in group.members(max_depth=None):
        if isinstance(node, zarr.Array):
            check_codecs(node)
    if (folder := find_folder(group)) is not None:
        for name in ("zarr.json", ".zmetadata"):
            file = folder / name
            copies = json.loads(file.read_text()) if file.is_file() else {}
            copies = (copies.get("consolidated_metadata") or copies).get("metadata") or {}
            for key, described in copies.items():
                if isinstance(described, dict):
                    _refuse_unsafe(f"{file}: {key}", described)


def find_codecs(described: Any) -> Iterator[str]:
    """Yield the names of all codecs in metadata, also of codecs inside others (shards)."""
    if isinstance(described, dict):
        name = described.get("id", described.get("name"))
        if name is not None:
            yield str(name)
        for value in described.values():
            yield from find_codecs(value)
    elif hasattr(described, "get_config") or hasattr(described, "to_dict"):  # a codec object of numcodecs or zarr
        yield from find_codecs(described.get_config() if hasattr(described, "get_config") else described.to_dict())
    elif isinstance(described, list | tuple):
        for part in described:
            yield from find_codecs(part)


def check_filters(what: str, array: h5py.Dataset) -> None:
    """Raise MissingDependencyError where a filter of an HDF5 dataset is missing; loads hdf5plugin if installed."""
    properties = array.id.get_create_plist()
    for k in range(properties.get_nfilters()):
        number = properties.get_filter(k)[0]
        if not h5z.filter_avail(number):
            with suppress(ImportError):
                import hdf5plugin  # noqa: F401  registers its filters
            if not h5z.filter_avail(number):
                name = HDF5_FILTERS.get(number, "unknown to atlasvi")
                raise MissingDependencyError(
                    f"{what} is compressed with HDF5's filter {number} ({name}), which is not installed: "
                    "pip install hdf5plugin, then give the same command again."
                )


def check_complete(path: str, name: str, array: Node, root: Node) -> bool:
    """Raise SourceError where chunks of an array are missing and the rest of the file shows that they are not zeros.

    Returns whether missing chunks are read as zeros that may have been lost (see missing_chunks), so the user must be
    notified. An HDF5 file must have all its chunks.
    """
    missing: list[int] | range = []
    if isinstance(array, h5py.Dataset):
        n_expected, n_missing = count_unwritten(array)
        cause = "writing the file was interrupted; write it again"
    else:
        n_expected, missing = find_missing_chunks(array)
        n_missing = 0 if missing and can_be_zeros(name, array, root, n_expected, missing) else len(missing)
        cause = "the copy is incomplete; copy it again"
    if n_missing:
        raise SourceError(
            f"{path}: {n_missing} of {n_expected} chunks of {name} are missing: {cause}. If the program that wrote it "
            f"leaves out chunks of only zeros, as zarr-python 3 does, read them as zeros: {path}::missing_chunks=zeros"
        )
    nothing_stored = len(missing) == n_expected
    proven = ("/indices", "/indptr", "/mask", "/codes") if nothing_stored else ("/indices", "/indptr")
    return bool(missing) and not name.endswith(proven)


def count_unwritten(array: h5py.Dataset) -> tuple[int, int]:
    """(chunks that an HDF5 dataset should have, how many of them were never written)."""
    if not array.size:
        return 0, 0
    if array.chunks is None:
        compact = array.id.get_create_plist().get_layout() == h5d.COMPACT
        return 1, int(not compact and array.id.get_storage_size() == 0)
    n_expected = int(np.prod([-(-n // step) for n, step in zip(array.shape, array.chunks)], dtype=object))
    return n_expected, n_expected - array.id.get_num_chunks()
