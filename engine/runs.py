"""A finished run: the model, what it was trained on, how good it is; and its directory on disk."""

import fcntl
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atlasvi.engine.covariates import Setup
from atlasvi.engine.model import SCVI, model_from_weights
from atlasvi.engine.model_settings import Freezing
from atlasvi.loaders.errors import OutputError, SourceError
from atlasvi.loaders.outputs import explain_full_disk, sync_folder

MODEL, RESULT, CONFIG, METRICS = "model.pt", "result.json", "config.json", "metrics.jsonl"


@dataclass
class TrainedRun:
    """A trained model and the names that its numbers stand for.

    setup   the columns of obs that the model takes, and what its codes stand for
    result  held-out and training losses in nats a cell (see `training`)
    state    where training goes on from besides the weights: `optimizer`, `epoch`, `step`, `history`
    freezing what training holds of the model
    split    int64 numbers of the cells of each part (train, validation, test), where the model was kept with them
    """

    model: SCVI
    genes: list[str]
    setup: Setup = field(default_factory=Setup)
    result: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    state: dict[str, Any] | None = None
    freezing: Freezing | None = None
    split: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def model_settings(self) -> dict[str, Any]:
        """What the model is made of, as plain values."""
        return self.model.settings.model_dump()

    def save(self, folder: Path) -> None:
        """Write the model into a run directory, whole or not at all."""
        content = {"genes": self.genes, **asdict(self.setup)}
        buffer = io.BytesIO()
        weights = {name: tensor.detach().cpu() for name, tensor in self.model.state_dict().items()}
        torch.save({**content, "settings": self.model_settings, "weights": weights}, buffer)
        write_whole(folder / MODEL, bytes(buffer.getbuffer()))


def load_run(path: str | Path) -> TrainedRun:
    """A finished run from its directory, the model in evaluation mode on the CPU. Raises SourceError if it is none."""
    folder = Path(path)
    if not (folder / MODEL).is_file():
        if (folder / CONFIG).is_file():
            raise SourceError(f"{path}: the run is not finished: go on with atlasvi train ... --out {path} --resume.")
        raise SourceError(f"{path} is not a run directory (make one with: atlasvi train DATA --out RUN).")
    try:
        # weights_only: tensors and plain values, no code of the file is run
        content = torch.load(folder / MODEL, weights_only=True, map_location="cpu")
        model, genes = model_from_weights(content.pop("settings"), content.pop("weights")), content.pop("genes")
        setup = Setup(**content)
        result = json.loads((folder / RESULT).read_text())
    except Exception as error:  # torch.load raises whatever the damage leads it to
        raise SourceError(f"{path}: the run's {MODEL} or {RESULT} is damaged ({error}): copy it again.") from error
    return TrainedRun(model, genes, setup, result, folder)


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Keep a second process from training the same run. Raises OutputError if one does."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"{folder}: another process is training this run: wait for it, or stop it.") from None
        yield
    finally:
        os.close(handle)


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file by new content in one step: written aside, flushed, renamed."""
    temporary = path.with_name(f".{path.name}.unfinished")
    try:
        with explain_full_disk(path), open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values as JSON, whole or not at all."""
    write_whole(path, (json.dumps(values, indent=2) + "\n").encode())
