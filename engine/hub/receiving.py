"""Files from a place into a folder: compared by checksum, whole or not at all, continued after an interruption.

They arrive in `.NAME.unfinished` beside the folder (see `loaders.jobs`). A new folder is that one, renamed when all is
there; in a folder that exists, changed files are replaced when all have arrived, and its list of files is written last.
"""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atlasvi.engine.hub.hub_files import LIST, OURS, ConnectionLostError, Listing, check_name, is_same
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.jobs import Job
from atlasvi.loaders.manifest import write_manifest
from atlasvi.loaders.outputs import explain_full_disk, lock_folder, name_scratch, publish, write_folder_aside

Fetch = Callable[[str, Path], None]
"""fetch(name, folder) writes the file `folder / name`."""


@dataclass(frozen=True)
class _Receiving(Job):
    """The files that are to arrive: {name: [bytes, checksum]}."""

    files: dict[str, Any]


def receive(out: Path, where: str, files: Listing, fetch: Fetch) -> list[str]:
    """Bring a folder to the files of a place; returns the names of those that were fetched.

    where  the place, for errors
    Files that `out` has already, or that an interrupted call has fetched, are not fetched again. Files of `out` that
    the place does not have stay, but for those of a model, which would be taken for this model's.
    Raises SourceError if a name leads out of the folder or a file arrives damaged, OutputError if `out` can't be
    written (a full disk) or is being written by another process, and what `fetch` raises.
    """
    for name in files:
        check_name(name, where)
    job = _Receiving({name: list(asdict(listed).values()) for name, listed in files.items()})
    if not out.is_dir():
        with write_folder_aside(out, lambda scratch: job.load(scratch) == job) as scratch:
            return _fetch_missing(scratch, job, files, fetch, where, out)
    scratch = name_scratch(out.absolute())
    scratch.mkdir(exist_ok=True)
    with lock_folder(scratch, f"writing {out}: wait for it."), explain_full_disk(out):
        if job.load(scratch) != job:
            shutil.rmtree(scratch)
            scratch.mkdir()
        try:
            fetched = _fetch_missing(scratch, job, files, fetch, where, out)
            _replace(scratch / "result", out, files)
        except BaseException as error:
            if not isinstance(error, (KeyboardInterrupt, SystemExit, ConnectionLostError)):
                shutil.rmtree(scratch, ignore_errors=True)
            raise
        shutil.rmtree(scratch)
    return fetched


def _fetch_missing(scratch: Path, job: Job, files: Listing, fetch: Fetch, where: str, out: Path) -> list[str]:
    """Fetch what neither `out` nor the scratch folder has; a new folder gets its list of files."""
    result, arriving, fetched = scratch / "result", scratch / "arriving", []
    for folder in (result, arriving):
        folder.mkdir(exist_ok=True)
    job.save(scratch)
    for name, listed in files.items():
        if is_same(out / name, listed) or is_same(result / name, listed):
            continue
        (arriving / name).parent.mkdir(parents=True, exist_ok=True)
        fetch(name, arriving)
        if not is_same(arriving / name, listed):
            raise SourceError(f"{where}: {name} arrived damaged or was changed meanwhile: give the same command again.")
        (result / name).parent.mkdir(parents=True, exist_ok=True)
        (arriving / name).rename(result / name)
        fetched.append(name)
    if not out.is_dir():
        write_manifest(result, list_name=LIST)
    return fetched


def _replace(arrived: Path, out: Path, files: Listing) -> None:
    """Move what has arrived into the folder, and write its list."""
    for path in sorted(arrived.rglob("*")):
        if path.is_file():
            target = out / path.relative_to(arrived)
            target.parent.mkdir(parents=True, exist_ok=True)
            publish(path, target, replace=True)
    for name in OURS:
        if name not in files:
            (out / name).unlink(missing_ok=True)
    write_manifest(out, files, list_name=LIST)
