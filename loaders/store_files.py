"""Which folders are stores of atlasvi, and whether all files that were written are there."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import SourceError, StorageError
from atlasvi.loaders.manifest import MANIFEST, check_files, names_below, read_manifest
from atlasvi.loaders.places.object_path import ObjectPath, Place, open_folder, to_place
from atlasvi.loaders.places.requests import NoPermissionError

KIND = "cell store"
READ_WHEN_OPENED = names_below(("var", "uns"))


def read_attributes(path: str | Path | ObjectPath) -> dict | None:
    """The `atlasvi` attributes of a folder that this project wrote, else None. Raises StorageError."""
    try:
        text = (to_place(path) / "zarr.json").read_text()
    except NoPermissionError:  # also said of what is missing, where a bucket may be read and not listed
        return None
    except StorageError:
        raise
    except (OSError, ValueError):  # not text, or no path that a file can have
        return None
    try:
        attributes = json.loads(text)["attributes"]["atlasvi"]
    except (ValueError, KeyError, TypeError):
        return None
    return attributes if isinstance(attributes, dict) else None


def is_cell_store(path: str | Path | ObjectPath) -> bool:
    """Whether `path` is a finished cell store (of any version)."""
    attributes = read_attributes(path)
    return attributes is not None and attributes.get("kind") == KIND


def check_version(path: str, kind: str, content: Mapping[str, Any], newest: int) -> None:
    """Raise SourceError if `content` says that it is of a newer format than this code knows.

    Without a format_version it is format 1: runs, models and checkpoints of the first versions.
    """
    found = content.get("format_version", 1)
    if type(found) is not int or found < 1:
        raise SourceError(f"{path} is damaged: its format_version is {found!r:.60}: copy it again.")
    if found > newest:
        raise SourceError(
            f"{path}: this {kind} is of format {found}, and this atlasvi reads up to {newest}: upgrade it "
            "(pip install --upgrade atlasvi)."
        )


def check_manifest(path: Place, attributes: Mapping[str, Any]) -> bool:
    """Compare a store with its list of files (sizes, and checksums of metadata); returns whether it has a list.

    Raises SourceError if a file or the list is missing or damaged; stores of older versions have no list.
    """
    files = read_manifest(path)
    if files is None:
        if attributes.get("manifest"):
            raise SourceError(f"{path / MANIFEST} is missing: copy the store again from where it came from.")
        return False
    check_files(path, files, READ_WHEN_OPENED)
    return True


def check_listed(path: str | Path | ObjectPath) -> None:
    """Compare a cell store that is read as a source with its list of files; other sources have no list and pass.

    Zarr reads a chunk that is missing as zeros. Raises SourceError if a file is missing or damaged.
    """
    if is_cell_store(path):
        with reading(str(path)):
            check_manifest(open_folder(path), read_attributes(path) or {})
