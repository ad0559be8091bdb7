"""The files of a hub folder: their names, what is read from other people's lists, and checksums to compare them by."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from atlasvi.engine.card.model_card import METRICS
from atlasvi.engine.card.page import PAGE
from atlasvi.engine.model.run_files import MODEL
from atlasvi.engine.scvi_tools.model_directories import SAVED
from atlasvi.loaders.errors import AtlasviError, SourceError
from atlasvi.loaders.manifest import PIECE_BYTES, has_content, hash_file, hash_files, read_manifest

METADATA, README, DATA = "_scvi_required_metadata.json", "README.md", "adata.h5ad"
LIST = SAVED  # atlasvi.json: the list of the other files with their sizes and checksums, written last
EDITED = (README, PAGE, METADATA)  # texts, which people may change by hand after the folder was written
OURS = (MODEL, DATA, METRICS, PAGE)  # removed from a place if the model that replaces another one has no such file


class HubError(AtlasviError, OSError):
    """A place can't be reached, read or written: no network, no token, no such repository, another model there."""


class ConnectionLostError(HubError):
    """The connection failed: what has arrived is kept, and the same call continues."""

    keeps_work = True


@dataclass(frozen=True)
class ListedFile:
    """A file as a place lists it.

    checksum  'crc32:...', 'sha256:...' or 'git:...' (as git names a file's content), in hexadecimal digits
    """

    n_bytes: int
    checksum: str


Listing = Mapping[str, ListedFile]
"""The files of a place, by their path in it; without LIST and hidden files."""


def is_same(path: Path, listed: ListedFile | None) -> bool:
    """Whether the file at `path` has the size and the checksum of a listed one."""
    if listed is None or not path.is_file() or path.stat().st_size != listed.n_bytes:
        return False
    return compute_checksum(path, listed.checksum.partition(":")[0]) == listed.checksum


def compute_checksum(path: Path, kind: str) -> str:
    """The checksum of a file, of a kind that `ListedFile` has."""
    if kind == "crc32":
        return hash_file(path)[1]
    if kind not in ("sha256", "git"):
        raise ValueError(f"no such checksum: {kind}")
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return f"{kind}:{digest.hexdigest()}"


def is_hidden(name: str) -> bool:
    """Whether a file, or a folder that leads to it, is hidden: caches, unfinished files, git's own."""
    return any(part.startswith(".") for part in name.split("/"))


def check_name(name: str, where: str) -> None:
    """Raise SourceError for a name that would lead out of the folder that it is written to."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not path.parts:
        raise SourceError(f"{where}: it lists a file {name!r}, which would lead out of the folder: nothing was read.")


def list_folder(folder: Path) -> dict[str, ListedFile]:
    """The files of a hub folder as they are now.

    Raises SourceError if a file does not match the folder's list, except for texts, which may be edited by hand.
    """
    found = hash_files(folder)
    for name, (size, checksum) in (read_manifest(folder, LIST) or {}).items():
        check_name(name, f"{folder / LIST}")
        if name in EDITED or has_content(folder / name, size, checksum):
            continue
        state = "is damaged or was changed" if name in found else "is missing"
        raise SourceError(
            f"{folder / name} {state}: it does not match {LIST}. Copy it again; if you changed it on purpose, atlasvi "
            "check --renew accepts the change."
        )
    return {
        name: ListedFile(size, checksum)
        for name, (size, checksum) in found.items()
        if name != LIST and not is_hidden(name)
    }
