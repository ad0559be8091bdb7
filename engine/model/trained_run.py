"""A finished run: the model, what it was trained on, how good it is; and its directory on disk."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import pandas as pd
import torch

from atlasvi.engine.model.covariates import Setup
from atlasvi.engine.model.model_options import Freezing
from atlasvi.engine.model.run_files import CONFIG, MODEL, RESULT, RUN_FORMAT
from atlasvi.engine.model.vae import VAE, model_from_weights
from atlasvi.engine.provenance import Provenance
from atlasvi.engine.torch_files import load_tensors
from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.manifest import check_files, read_json, read_manifest
from atlasvi.loaders.outputs import lock_folder, remove_leftovers, remove_unfinished, write_whole
from atlasvi.loaders.places.object_path import ObjectPath, Place, open_folder
from atlasvi.loaders.sources.data_spec import MEMORY, DataSpec
from atlasvi.loaders.store_files import check_version


@dataclass(frozen=True)
class MappedFrom:
    """The model that a model was mapped from: its path (empty: it had none), and the hash of its weights."""

    path: str
    weights_sha256: str

    @classmethod
    def from_saved(cls, saved: Any) -> Self | None:
        """From what `vars` gave, as files keep it; None from None. Raises TypeError for anything else."""
        if saved is None:
            return None
        if not isinstance(saved, dict) or not all(isinstance(value, str) for value in saved.values()):
            raise TypeError(f"mapped_from is {saved!r:.60}")
        return cls(**saved)

    def __str__(self) -> str:
        return f"{self.path or 'a model in memory'} (weights {self.weights_sha256})"


@dataclass
class TrainedRun:
    """A trained model, and the names of its genes, batches and other categories.

    setup    the columns of obs that the model uses, and the categories of each
    data     how the training data was opened; None if unknown (a model of scvi-tools)
    result   held-out and training losses in nats per cell (see `training`)
    state    what training needs to go on, besides the weights: `optimizer`, `epoch`, `step`, `history`
    freezing which parameters training freezes
    split    int64 indices of the cells of each part (train, validation, test), if the model was saved with them
    is_new   whether the weights are as they were drawn: no training has changed them
    var      what is known of the genes, one row for each, in their order; None: nothing but their names
    provenance  where the model comes from; None if unknown (a model of scvi-tools, or of an older atlasvi)
    mapped_from  the reference, if the model was mapped from one onto new data
    """

    model: VAE
    genes: list[str]
    setup: Setup = field(default_factory=Setup)
    result: dict[str, Any] = field(default_factory=dict)
    path: Place | None = None
    state: dict[str, Any] | None = None
    freezing: Freezing | None = None
    split: dict[str, np.ndarray] = field(default_factory=dict)
    data: DataSpec | None = None
    is_new: bool = False
    var: pd.DataFrame | None = None
    provenance: Provenance | None = None
    mapped_from: MappedFrom | None = None

    @property
    def like(self) -> DataSpec:
        """How to open data for this model where the user does not say: as the training data was opened.

        How its bucket was reached is left out: a model of somebody else must not name the server to which the user's
        credentials are sent.
        """
        known = self.data or DataSpec("", layer=self.setup.layer, format=MEMORY)
        values = "numbers" if self.model.settings.likelihood.takes_fractions else None
        return replace(known.leave_out_storage(), values=values)

    @property
    def weights_sha256(self) -> str:
        """A hash that identifies the weights: the first 16 digits."""
        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def model_settings(self) -> dict[str, Any]:
        """The model's settings, as plain values."""
        return self.model.settings.model_dump()

    def save(self, folder: Place) -> None:
        """Write the model into a run directory, all of it or nothing."""
        content = {"format_version": RUN_FORMAT, "genes": self.genes, **self.setup.to_saved()}
        if self.data is not None:
            content["data"] = self.data.to_record()
        if self.provenance is not None:
            content["provenance"] = self.provenance.to_record()
        if self.freezing is not None:
            content["freezing"] = self.freezing.model_dump()
        if self.mapped_from is not None:
            content["mapped_from"] = vars(self.mapped_from)
        buffer = io.BytesIO()
        weights = {name: tensor.detach().cpu() for name, tensor in self.model.state_dict().items()}
        torch.save({**content, "settings": self.model_settings, "weights": weights}, buffer)
        write_whole(folder / MODEL, buffer.getvalue())


def load_run(path: str | Place) -> TrainedRun:
    """A finished run, its model in evaluation mode on the CPU. Raises SourceError if `path` is not a finished run."""
    folder = open_folder(path)
    remove_leftovers(folder)
    if not (folder / MODEL).is_file():
        if (folder / CONFIG).is_file():
            raise SourceError(
                f"{path}: the run is not finished: resume it with atlasvi train ... --out {path} --resume."
            )
        what = "is not a run directory" if folder.exists() else "is not a run directory: it does not exist"
        raise SourceError(
            f"{path} {what}. Name the run first, then the data; atlasvi train DATA --out RUN makes a run."
        )
    check_files(folder, read_manifest(folder) or {}, lambda name: name != MODEL)  # the model file has its own checksums
    content, result = load_tensors(folder / MODEL), read_json(folder / RESULT)
    with reading(str(folder / MODEL)):
        check_version(str(folder / MODEL), "model", content, RUN_FORMAT)
        content.pop("format_version", None)
        data = DataSpec.from_record(content.pop("data")) if "data" in content else None
        provenance = Provenance.from_record(content.pop("provenance", None))
        freezing = Freezing.model_validate(content.pop("freezing")) if "freezing" in content else None
        origin = MappedFrom.from_saved(content.pop("mapped_from", None))
        model, genes = model_from_weights(content.pop("settings"), content.pop("weights")), content.pop("genes")
        if len(genes) != model.settings.n_genes:
            n_genes = model.settings.n_genes
            raise SourceError(
                f"{folder / MODEL} is damaged: it has {n_genes:,} genes and names {len(genes):,}: copy it again."
            )
        setup = Setup.from_saved(content)
        batch_key, n_batches = setup.keys.batch_key, setup.sizes["n_batches"]
        # a model may be saved without a setup: it can still decode
        if batch_key is not None and n_batches != model.settings.n_batches:
            raise SourceError(
                f"{folder / MODEL} is damaged: its model has {model.settings.n_batches:,} batches, but it "
                f"names {n_batches:,} (column {batch_key!r} of obs): copy it again."
            )
        return TrainedRun(
            model,
            genes,
            setup,
            result,
            folder,
            freezing=freezing,
            data=data,
            provenance=provenance,
            mapped_from=origin,
        )


@contextmanager
def lock_run(folder: Place) -> Iterator[None]:
    """Lock the run against training by a second process, and remove the remains of a killed one. Raises OutputError.

    A bucket has neither locks nor remains: each object appears whole.
    """
    if isinstance(folder, ObjectPath):
        yield
        return
    with lock_folder(folder, "training this run: wait for it, or stop it."):
        remove_unfinished(folder)
        yield
