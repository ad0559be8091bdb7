"""SCVI's `train`, with scvi-tools' arguments: in memory or out of core, from where the last call ended."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from atlasvi.engine.api.model_and_data import ModelAndData
from atlasvi.engine.api.training_arguments import (
    explain_end,
    name_parts,
    split_cells,
    translate_arguments,
    warn_without_effect,
)
from atlasvi.engine.distributed.signals import TrainingInterrupted
from atlasvi.engine.queries.question_cells import CountedCells, QueryError
from atlasvi.engine.training.checkpoint_content import KEPT_BY_MODEL
from atlasvi.engine.training.checkpoint_files import CheckpointError, read_newest_checkpoint
from atlasvi.engine.training.settings import SettingError
from atlasvi.engine.training.splits import SPLIT_BY_INDEX
from atlasvi.engine.training.train import train
from atlasvi.engine.training.training_error import TrainingError
from atlasvi.loaders.cells.open_cells import add_column


class Training(ModelAndData):
    """Train the model, and keep what a later call continues from."""

    def train(
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: Any = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        load_sparse_tensor: bool = False,
        batch_size: int = 128,
        early_stopping: bool = False,
        datasplitter_kwargs: Mapping[str, Any] | None = None,
        plan_config: Mapping[str, Any] | None = None,
        plan_kwargs: Mapping[str, Any] | None = None,
        trainer_config: Mapping[str, Any] | None = None,
        *,
        run_dir: str | Path | None = None,
        resume: bool = False,
        settings: Mapping[str, Any] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the model; a later call continues with the same optimizer, and the counts of epochs go on.

        max_epochs   0 splits the cells without training
        accelerator  'auto', 'cpu' or 'gpu'
        run_dir      directory that keeps the run (metrics, checkpoints, the model); None: only the model is kept
        resume       resume the interrupted run in `run_dir`
        settings     of `Settings`; they override what follows from the other arguments
        devices and load_sparse_tensor have no effect: ranks are started by torchrun, and counts are always sparse.
        If training is stopped by Ctrl-C or by a loss that is not finite, the model keeps weights and history of the
        last good checkpoint, and the error tells which one it is.
        Raises SettingError for an unknown argument, and the errors of `train` of `atlasvi.engine`.
        """
        if not isinstance(cells := self._open_own(), CountedCells):
            raise QueryError("There are no counts to train on: load the model with its full data.")
        warn_without_effect(datasplitter_kwargs, {**(trainer_config or {}), **trainer_kwargs}, devices)
        if run_dir is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise SettingError("Several ranks write one run together: set its directory, run_dir.")
        data = cells.data
        translated = translate_arguments(
            data.n_cells,
            max_epochs,
            batch_size,
            early_stopping,
            {**(plan_config or {}), **(plan_kwargs or {})},
            {**(trainer_config or {}), **trainer_kwargs},
        )
        external = (datasplitter_kwargs or {}).get("external_indexing")
        parts = split_cells(data.n_cells, train_size, validation_size, shuffle_set_split, self.seed, external)
        if max_epochs == 0:
            self._finish_training(parts)
            return
        split_column = None
        if not len(parts["validation"]):
            translated["validation_fraction"] = 0.0
        if len(parts["train"]) < data.n_cells:
            data, split_column = add_column(data, SPLIT_BY_INDEX, name_parts(parts, data.n_cells)), SPLIT_BY_INDEX
        with tempfile.TemporaryDirectory(prefix="atlasvi-") as scratch:
            out = Path(scratch) / "run" if run_dir is None else Path(run_dir)
            try:
                trained = train(
                    data,
                    out,
                    start=None if resume else self.run,
                    seed=self.seed,
                    split_column=split_column,
                    device={"gpu": "cuda"}.get(accelerator, accelerator),
                    settings={**translated, **(settings or {})},
                    resume=resume,
                )
            except (TrainingInterrupted, TrainingError) as error:
                kept = self._keep_checkpoint(out, parts)
                raise type(error)(explain_end(error.what, kept, run_dir)) from None
            saved = read_newest_checkpoint(out / "checkpoints")[1]
        trained.path = None if run_dir is None else Path(run_dir)
        trained.state = {name: saved[name] for name in KEPT_BY_MODEL}
        trained.freezing, self.run = self.run.freezing, trained
        self._finish_training(parts)

    def _keep_checkpoint(self, out: Path, parts: dict[str, np.ndarray]) -> int | None:
        """Load the last checkpoint of a training that ended early; returns its step, or None if there is none."""
        try:
            saved = read_newest_checkpoint(out / "checkpoints")[1]
        except CheckpointError:  # training ended before the first one
            return None
        ours = {name: values.shape for name, values in self.run.model.state_dict().items()}
        same = ours == {name: values.shape for name, values in saved["weights"].items()}  # not of another run
        if not same or saved["step"] == (self.run.state or {}).get("step", 0):
            return None
        self.run.model.load_state_dict(saved["weights"])
        self.run.state, self.run.is_new = {name: saved[name] for name in KEPT_BY_MODEL}, False
        self._finish_training(parts)
        return saved["step"]

    def _finish_training(self, parts: dict[str, np.ndarray]) -> None:
        self._keep_split(parts)
        self.is_trained = True
        self.to_device(self.device)
