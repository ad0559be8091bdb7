"""Are files as they were written? JSON that carries its own checksum, and folders with a list of their files.

The list of a folder, `manifest.json`, is written last: {"files": {name: [bytes, checksum]}, "crc32c": of the list}.
The checksum of a file is its crc32 and not its crc32c: Zarr ends a chunk with the crc32c of its content, and the crc32c
of both together is the same number for all content, so that one chunk could take the place of another. When a folder is
opened, each file of the list must be there with its size, and metadata must match their checksums; `atlasvi check`
compares those of all files. Files that are not in the list are ignored.
"""

import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c

from atlasvi.loaders.errors import SourceError, StorageError
from atlasvi.loaders.outputs import UNFINISHED, write_whole
from atlasvi.loaders.places.object_path import ObjectPath, Place

MANIFEST, CHECKSUM = "manifest.json", "crc32c"
PIECE_BYTES = 2**24

Files = dict[str, tuple[int, str]]
"""For each file of a folder, by its path in it: bytes and checksum, `crc32:` and eight hexadecimal digits. Lists of
older versions have eight digits alone, of the crc32c."""


def write_json(path: Place, values: Mapping[str, Any]) -> None:
    """Write plain values as JSON that carries its own checksum, whole or not at all."""
    plain = json.loads(json.dumps(values))  # as `read_json` will see it: all keys are text
    content = json.dumps({**plain, CHECKSUM: _hash_json(plain)}, indent=2) + "\n"
    write_whole(path, content.encode())


def read_json(path: Place, *, older: bool = True) -> dict[str, Any]:
    """Read what `write_json` wrote.

    older  whether it may come from an older atlasvi, which wrote no checksum
    Raises SourceError if the file is missing, is not JSON, or does not match its checksum.
    """
    try:
        values = json.loads(path.read_bytes())
    except StorageError:
        raise
    except FileNotFoundError:
        raise SourceError(f"{path} is missing: copy the folder again from where it came from.") from None
    except OSError as error:
        raise SourceError(f"{path}: it can't be read ({error.strerror}).") from error
    except ValueError as error:
        raise SourceError(f"{path} is damaged (it is not JSON: {error}): copy it again.") from error
    if not isinstance(values, dict):
        raise SourceError(f"{path} is damaged (it holds no JSON object): copy it again.")
    if values.pop(CHECKSUM, None) not in ((None,) if older else ()) + (_hash_json(values),):
        raise SourceError(
            f"{path} is damaged or was changed by hand (it does not match its {CHECKSUM}): copy it again, or, if you "
            f"changed it on purpose, remove the line {CHECKSUM!r} from it."
        )
    return values


def _hash_json(values: Mapping[str, Any]) -> str:
    return f"{google_crc32c.value(json.dumps(values, sort_keys=True).encode()):08x}"


def hash_file(path: Place, like: str = "crc32:") -> tuple[int, str]:
    """Bytes and checksum of a file; the checksum is of the same kind as `like`, a checksum (see `Files`)."""
    kind = like.rpartition(":")[0]
    extend = (lambda checksum, piece: zlib.crc32(piece, checksum)) if kind else google_crc32c.extend
    size, checksum = 0, 0
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            size, checksum = size + len(piece), extend(checksum, piece)
    return size, f"{kind}:{checksum:08x}" if kind else f"{checksum:08x}"


def has_content(path: Place, size: int, checksum: str) -> bool:
    """Whether a file has this size and this checksum, as a list of files says them."""
    return path.is_file() and path.stat().st_size == size and hash_file(path, checksum)[1] == checksum


def hash_files(folder: Place, names: Iterable[str] | None = None, known: Mapping[str, Any] | None = None) -> Files:
    """Bytes and checksums of the files of a folder: those of `names`, or of all files below it.

    known  entries of files that need not be read again
    What a killed process left in a folder of its own is not of them: the next one removes it.
    """
    listed = sorted(_list_sizes(folder) if names is None else names)
    kept = [name for name in listed if name != MANIFEST and not name.partition("/")[0].endswith(UNFINISHED)]
    return {name: (known or {}).get(name) or hash_file(folder / name) for name in kept}


def write_manifest(
    folder: Place, names: Iterable[str] | None = None, known: Mapping[str, Any] | None = None, list_name: str = MANIFEST
) -> None:
    """Write the list of a folder's files (see `hash_files`), as manifest.json or under `list_name`."""
    write_json(folder / list_name, {"files": hash_files(folder, names, known)})


@contextmanager
def changing(folder: Path, is_changed: Callable[[str], bool]) -> Iterator[None]:
    """Keep a folder's list of files, if it has one, correct while files are changed or added in the block.

    is_changed  whether a file of this name is changed; these are not in the list meanwhile, so a kill does no harm
    """
    files = read_manifest(folder)
    if files is None:
        yield
        return
    kept = {name: found for name, found in files.items() if not is_changed(name)}
    write_json(folder / MANIFEST, {"files": kept})
    yield
    write_manifest(folder, known=kept)


def read_manifest(folder: Place, list_name: str = MANIFEST) -> Files | None:
    """The list of a folder's files, or None if it has no list. Raises SourceError if it is damaged."""
    if not (folder / list_name).exists():
        return None
    files = read_json(folder / list_name).get("files")
    if not isinstance(files, dict) or not all(map(_is_entry, files.values())):
        raise SourceError(
            f"{folder / list_name} is damaged (it does not list files with their sizes and checksums): copy it again."
        )
    return {name: (size, checksum) for name, (size, checksum) in files.items()}


def _is_entry(value: Any) -> bool:
    """Whether a value is a size and a checksum."""
    if not isinstance(value, list) or len(value) != 2 or type(value[0]) is not int or not isinstance(value[1], str):
        return False
    return re.fullmatch(r"(crc32:)?[0-9a-f]{8}", value[1]) is not None


def check_files(folder: Place, files: Files, compared: Callable[[str], bool]) -> None:
    """Raise SourceError, naming the first, if a file is missing, has another size, or does not match its checksum.

    compared  whether the checksum of a file of this name is compared too
    """
    for sentence in find_damage(folder, files, compared):
        raise SourceError(sentence)


def find_damage(folder: Place, files: Files, compared: Callable[[str], bool]) -> Iterator[str]:
    """A sentence for each file that is missing, has another size, or does not match its checksum."""
    there = _list_sizes(folder)
    if isinstance(folder, ObjectPath):
        folder.read_ahead(name for name in files if name in there and compared(name))
    for name, (size, checksum) in files.items():
        path = folder / name
        if name not in there:
            yield f"{path} is missing: copy it again from where the other files came from."
        elif there[name] != size:
            yield f"{path} is damaged or was changed: it has {there[name]:,} bytes, and {size:,} were written. {ADVICE}"
        elif compared(name) and (found := hash_file(path, checksum)[1]) != checksum:
            yield f"{path} is damaged or was changed: its checksum is {found}, and {checksum} was written. {ADVICE}"


ADVICE = "Copy it again; if you changed it on purpose, atlasvi check --renew accepts the change."


def _list_sizes(folder: Place) -> dict[str, int]:
    """Bytes of all files below a folder, by their path in it; broken links are left out."""
    if isinstance(folder, ObjectPath):
        return folder.list_sizes()
    sizes: dict[str, int] = {}
    waiting: list[tuple[str, str]] = [(str(folder), "")]
    while waiting:
        place, prefix = waiting.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                try:
                    if entry.is_dir():
                        waiting.append((entry.path, f"{prefix}{entry.name}/"))
                    else:
                        sizes[f"{prefix}{entry.name}"] = entry.stat().st_size
                except OSError:
                    if not entry.is_symlink():  # a broken link counts as a missing file
                        raise
    return sizes


def names_below(folders: Iterable[str]) -> Callable[[str], bool]:
    """A test for Zarr metadata, and for files below these folders, which are read whole when the store is opened."""
    prefixes = tuple(f"{folder}/" for folder in folders)
    return lambda name: name.endswith("zarr.json") or name.startswith(prefixes)
