"""Checkpoints: written whole or not at all, verified when read, the one before kept in case."""

import hashlib
import io
import os
import pickle
import re
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from atlasvi.loaders.errors import AtlasviError
from atlasvi.loaders.outputs import explain_full_disk, sync_folder


class CheckpointError(AtlasviError, RuntimeError):
    """No checkpoint that can be read."""


class CheckpointWriter:
    """Writes checkpoints on a thread, one at a time, while training goes on."""

    def __init__(self, folder: Path, kept: int) -> None:
        self._folder, self._kept = folder, kept
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="atlasvi-checkpoint")
        self._writing: Future[Path] | None = None

    def submit(self, step: int, state: dict[str, Any]) -> None:
        """Begin to write `state`, which must not change any more; waits for the one before. Raises what that raised."""
        self.wait()
        self._writing = self._thread.submit(write_checkpoint, self._folder, step, state, self._kept)

    def check(self) -> None:
        """Raises what went wrong since (OutputError on a full disk); waits for nothing."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> Path | None:
        """Until what was submitted is on disk; where it is. Raises what went wrong with it."""
        writing, self._writing = self._writing, None
        return None if writing is None else writing.result()

    def close(self) -> None:
        """Let what is being written be finished; errors no longer matter."""
        self._thread.shutdown()


def copy_state(state: Any) -> Any:
    """The same with tensors on the CPU that nobody else changes: what a checkpoint is written from meanwhile."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: copy_state(value) for key, value in state.items()}
    if isinstance(state, list):
        return [copy_state(value) for value in state]
    return state


def write_checkpoint(folder: Path, step: int, state: dict[str, Any], kept: int) -> Path:
    """Write `state` (tensors, numbers, text, lists, dictionaries) as the checkpoint of a step; keep the `kept` newest.

    The file's name carries the sha256 of its content, so that one rename publishes both. Others of this step or a later
    one go: they are of a course that was left, or damaged, or else a resumed run would have begun there.
    Raises OutputError, leaving those that were there, if the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = (
        buffer.getvalue()
    )  # a view (getbuffer) that an error keeps in a cycle crashes the collector of Python 3.12.1
    path = folder / f"step-{step:09d}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
    temporary = folder / ".unfinished"
    try:
        with explain_full_disk(path), open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(folder)
    earlier = [old for old in list_checkpoints(folder) if step_of(old) < step]
    for old in set(list_checkpoints(folder)) - {path, *earlier[: kept - 1]}:
        old.unlink()
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a folder, newest first."""
    return sorted(folder.glob("step-*.pt"), reverse=True)


def step_of(checkpoint: Path) -> int:
    """The optimizer step that a checkpoint was written after."""
    return int(checkpoint.name.split("-")[1])


def read_newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint whose content matches its checksum. Raises CheckpointError if there is none."""
    path, content = read_newest_content(folder)
    return path, load_checkpoint(content)


def read_newest_content(folder: Path) -> tuple[Path, bytes]:
    """The same, not yet taken apart."""
    damaged = []
    for path in list_checkpoints(folder):
        content = path.read_bytes()
        written = re.fullmatch(r"step-\d+-([0-9a-f]{16})\.pt", path.name)
        if written and hashlib.sha256(content).hexdigest().startswith(written[1]):
            try:
                load_checkpoint(content)
                return path, content
            except (pickle.UnpicklingError, RuntimeError):
                pass  # whole, and yet not what we wrote
        damaged.append(path.name)
    if damaged:
        raise CheckpointError(f"{folder}: all checkpoints are damaged ({', '.join(damaged)}): start a new run.")
    raise CheckpointError(f"{folder}: there is no checkpoint to go on from: start the run without --resume.")


def load_checkpoint(content: bytes) -> dict[str, Any]:
    """The state in a checkpoint's content, on the CPU."""
    # weights_only: tensors and plain values, no code of the file is run
    return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
