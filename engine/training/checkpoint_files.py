"""Checkpoints: each written completely or not at all, and verified when read; older ones are kept as a fallback.

What they hold is in `checkpoint_content`.
"""

import hashlib
import io
import logging
import re
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from atlasvi.engine.model.run_files import RUN_FORMAT
from atlasvi.engine.torch_files import load_tensors
from atlasvi.loaders.errors import AtlasviError, SourceError
from atlasvi.loaders.outputs import remove_unfinished, write_whole
from atlasvi.loaders.places.object_path import Place
from atlasvi.loaders.store_files import check_version

NAME = re.compile(r"step-(\d+)-([0-9a-f]{16})\.pt")  # the step, and the beginning of the content's sha256

log = logging.getLogger(__name__)


class CheckpointError(AtlasviError, RuntimeError):
    """There is no checkpoint that can be read."""


class CheckpointWriter:
    """Writes checkpoints on a thread, one at a time, while training continues."""

    def __init__(self, folder: Place, kept: int) -> None:
        self._folder, self._kept = folder, kept
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="atlasvi-checkpoint")
        self._writing: Future[Place] | None = None

    def submit(self, step: int, state: dict[str, Any]) -> None:
        """Start writing `state`, which must not change any more. Waits for the previous write and raises its error."""
        self.wait()
        self._writing = self._thread.submit(write_checkpoint, self._folder, step, state, self._kept)

    def check(self) -> None:
        """Raise the error of a finished write, if there was one (OutputError on a full disk), without waiting."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> Place | None:
        """Wait until the submitted checkpoint is written, and return its path. Raises the error of the write."""
        writing, self._writing = self._writing, None
        return None if writing is None else writing.result()

    def close(self) -> None:
        """Wait for a write in progress, and ignore its error."""
        self._thread.shutdown()


def copy_state(state: Any) -> Any:
    """A copy with its tensors on the CPU, so that a checkpoint can be written from it while training continues."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: copy_state(value) for key, value in state.items()}
    if isinstance(state, list):
        return [copy_state(value) for value in state]
    return state


def write_checkpoint(folder: Place, step: int, state: dict[str, Any], kept: int) -> Place:
    """Write `state` (tensors, numbers, text, lists, dictionaries) as the checkpoint of a step; keep the `kept` newest.

    The file's name contains the sha256 of its content, so that one rename publishes both. Other checkpoints of this or
    a later step are removed: the run was resumed before them, so they are damaged or belong to an abandoned course.
    Raises OutputError if the disk is full; the earlier checkpoints then remain.
    """
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save({"format_version": RUN_FORMAT, **state}, buffer)
    # not getbuffer(): if an error keeps its view in a cycle, the garbage collector of Python 3.12.1 crashes
    content = buffer.getvalue()
    path = folder / f"step-{step:09d}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
    remove_unfinished(folder)
    write_whole(path, content)
    earlier = [old for old in list_checkpoints(folder) if step_of(old) < step]
    for old in set(list_checkpoints(folder)) - {path, *earlier[: kept - 1]}:
        old.unlink()
    return path


def list_checkpoints(folder: Place) -> list[Any]:
    """The checkpoints in a folder, newest first."""
    return sorted((path for path in folder.glob("step-*.pt") if NAME.fullmatch(path.name)), reverse=True)


def step_of(checkpoint: Place) -> int:
    """The optimizer step that a checkpoint was written after."""
    return int(checkpoint.name.split("-")[1])


def read_newest_checkpoint(folder: Place, *, older: bool = True) -> tuple[Place, dict[str, Any]]:
    """The newest checkpoint whose content matches its checksum: its path and its state.

    older  whether to use an older one, with a warning, if the newest is damaged
    Raises CheckpointError if there is none.
    """
    path, content = read_newest_content(folder, older=older)
    return path, load_checkpoint(content, str(path))


def read_newest_content(folder: Place, *, older: bool = True) -> tuple[Place, bytes]:
    """As `read_newest_checkpoint`, but the content is bytes that are not parsed yet."""
    damaged = []
    for path in list_checkpoints(folder):
        try:
            content = read_content(path)
        except SourceError:
            damaged.append(path.name)
            if not older:
                raise CheckpointError(
                    f"{path} is damaged, and it is the newest checkpoint: copy it again; or remove {folder}, to start "
                    "from the model's weights with a new optimizer."
                ) from None
            continue
        if damaged:
            log.warning("%s: %s is damaged: continuing from the older %s", folder, ", ".join(damaged), path.name)
        return path, content
    if damaged:
        raise CheckpointError(f"{folder}: all checkpoints are damaged ({', '.join(damaged)}): start a new run.")
    raise CheckpointError(f"{folder}: there is no checkpoint to resume from: start the run without --resume.")


def read_content(path: Place) -> bytes:
    """The content of a checkpoint. Raises SourceError if it is missing, damaged, or not a checkpoint of ours."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: the file can't be read ({error.strerror}).") from error
    named = NAME.fullmatch(path.name)
    if named is None or not hashlib.sha256(content).hexdigest().startswith(named[2]):
        raise SourceError(f"{path} is damaged: it does not match the checksum in its name: copy it again.")
    if not isinstance(load_tensors(path, content), dict):
        raise SourceError(f"{path} does not hold the state of a training run: copy it again.")
    return content


def load_checkpoint(content: bytes, name: str = "the checkpoint") -> dict[str, Any]:
    """The state from a checkpoint's content, on the CPU. Raises SourceError if its format is newer than this code.

    name  of the file, for messages
    """
    state = load_tensors(name, content)
    check_version(name, "checkpoint", state, RUN_FORMAT)
    return state
