"""New folders of a bucket: made beside their place, then copied to it by the bucket, the file that is their root last.

A bucket has no rename. So what is made in `.NAME.unfinished/result` is copied object by object, after a list of the
copies is written to `.NAME.unfinished/published.json`, which says that objects at the place are ours although the last
of them, the root, is missing. A folder without its root is no store, run or card: nothing takes it for whole.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator

from atlasvi.loaders.errors import AtlasviError, OutputError, StorageError
from atlasvi.loaders.places.object_path import ObjectPath
from atlasvi.loaders.places.written_objects import copy_object, copy_objects, remove_objects

PUBLISHED = "published.json"
ROOTS = ("manifest.json", "metrics.json", "config.json", "zarr.json")
"""Files at the top of a folder that make it something, in the order in which they are copied, after all others."""


@contextlib.contextmanager
def write_folder_in_bucket(
    out: ObjectPath, scratch: ObjectPath, is_same_job: Callable[[ObjectPath], bool]
) -> Iterator[ObjectPath]:
    """The scratch folder, for a caller that makes `result` in it, which becomes `out` at the end.

    It is kept, continued and removed as that of `write_folder_aside` on local disk. Two processes that write one output
    do not notice each other: a bucket has no locks.
    Raises OutputError if there is something at `out`, StorageError.
    """
    check_free_in_bucket(out, scratch)
    kept = False
    try:
        if not is_same_job(scratch):
            _remove(out, scratch)
        yield scratch
        publish_in_bucket(scratch, out)
    except BaseException as error:
        again = isinstance(error, (KeyboardInterrupt, SystemExit)) or getattr(error, "keeps_work", False)
        with contextlib.suppress(StorageError):
            kept = again and is_same_job(scratch)
        if not kept:
            with contextlib.suppress(AtlasviError):  # the same command removes it, or continues
                _remove(out, scratch)
        raise


def check_free_in_bucket(out: ObjectPath, scratch: ObjectPath) -> None:
    """Raises OutputError if there is something at `out` that was not left by a process that copied a result to it."""
    if not out.is_listable or not out.address.key:
        raise OutputError(f"{out}: nothing can be written there: give the address of a folder in a bucket.")
    if not out.exists():
        return
    copied = _read_copied(scratch)
    if copied is None or remove_published(out, scratch) or not out.list_sizes().keys() <= set(copied):
        raise OutputError(f"{out} exists already: choose another place, or remove it first.")


def remove_published(out: ObjectPath, scratch: ObjectPath) -> bool:
    """Remove a scratch folder whose result was copied whole to `out`, and which was left then; whether it was so."""
    copied = _read_copied(scratch)
    is_whole = bool(copied) and (out / copied[-1]).is_file()  # type: ignore[index]
    if is_whole:
        remove_objects(scratch.address, scratch.storage)
    return is_whole


def publish_in_bucket(scratch: ObjectPath, out: ObjectPath) -> None:
    """Copy `result` of a scratch folder to `out`, its root last, and remove the scratch folder. Raises StorageError."""
    made = scratch / "result"
    sizes = made.list_sizes()
    names = sort_for_copy(sizes)
    (scratch / PUBLISHED).write_bytes(json.dumps(names).encode())
    first = [name for name in names if name not in ROOTS]
    copy_objects(made.address, out.address, out.storage, first)
    there = out.list_sizes()
    for name in first:
        if there.get(name) != sizes[name]:
            raise StorageError(
                f"{out / name}: it was not copied whole from {made / name}: give the same command again."
            )
    for name in names[len(first) :]:
        copy_object(made.address.join(name), out.address.join(name), out.storage)
    with contextlib.suppress(StorageError):  # the output is whole; the same command removes the rest
        remove_objects(scratch.address, scratch.storage)


def sort_for_copy(names: Iterable[str]) -> list[str]:
    """Names of a folder's files in the order in which they are copied: the root last (see ROOTS)."""
    return sorted(names, key=lambda name: (ROOTS.index(name) + 1 if name in ROOTS else 0, "/" not in name, name))


def _read_copied(scratch: ObjectPath) -> list[str] | None:
    """The names that a process which was killed has copied, or not yet, to the output; None if it had not begun."""
    try:
        return json.loads((scratch / PUBLISHED).read_bytes())
    except FileNotFoundError:
        return None


def _remove(out: ObjectPath, scratch: ObjectPath) -> None:
    """Remove a scratch folder, and what was copied from it to an output that is not whole."""
    if copied := _read_copied(scratch):
        remove_objects(out.address, out.storage, copied)
    remove_objects(scratch.address, scratch.storage)
