"""SCVI's `save` and `load`: a directory that scvi-tools opens too, with what training needs to continue beside it."""

import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch

from atlasvi.engine.api.model_and_data import ModelAndData
from atlasvi.engine.minified.minified_store import MinifiedStore, is_minified_store
from atlasvi.engine.model.run_files import CONFIG, MODEL, RUN_FORMAT
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.queries.opened_data import read_anndata
from atlasvi.engine.scvi_tools.model_directories import (
    PARTS,
    SAVED,
    check_saved,
    load_scvi_tools,
    open_model,
    write_scvi_model,
)
from atlasvi.engine.torch_files import load_tensors
from atlasvi.engine.training.checkpoint_content import check_state
from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import OutputError
from atlasvi.loaders.manifest import write_manifest
from atlasvi.loaders.outputs import write_files_aside, write_folder_aside
from atlasvi.loaders.places.object_path import need_local, to_place
from atlasvi.loaders.sources.data_spec import DataSpec
from atlasvi.loaders.store_files import check_version

ADATA = "adata.h5ad"
STATE = "atlasvi.pt"  # beside a saved model: what training needs to continue and scvi-tools does not keep


@dataclass(frozen=True)
class SavedData:
    """An AnnData as it was saved or loaded beside a model: the object, the names of its cells, and its file."""

    adata: weakref.ref[Any]
    cells: pd.Index
    file: tuple[str, int, int]  # path, bytes, time of the last change

    @classmethod
    def of(cls, adata: Any, file: Path) -> Self:
        """The present state of both."""
        found = file.stat()
        return cls(weakref.ref(adata), adata.obs_names, (os.path.realpath(file), found.st_size, found.st_mtime_ns))

    def is_still(self, adata: Any, file: Path) -> bool:
        """Whether this file holds the cells of this AnnData, because neither has changed since."""
        known = self.adata()
        if known is None or known is not adata:
            return False
        return known.obs_names.equals(self.cells) and self.of(adata, file).file == self.file


class Saving(ModelAndData):
    """Save the model, and load it."""

    _saved_data: SavedData | None = None

    def save(
        self,
        dir_path: str | Path,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        **anndata_write_kwargs: Any,
    ) -> None:
        """Write the model as a directory that `load` and scvi-tools' `SCVI.load` open.

        prefix        first part of the names of its files
        overwrite     replace the files of a model saved there before; other files stay
        save_anndata  save the AnnData too, as adata.h5ad
        Raises OutputError if the directory exists and overwrite is False, if it can't be written, or if the AnnData of
        another model would stay there, which `load` would take for the data of this one.
        """
        folder, prefix = Path(os.path.abspath(dir_path)), prefix or ""  # '.' has no name
        if os.path.lexists(folder) and not (overwrite and folder.is_dir()):
            raise OutputError(f"{folder} exists already: choose another path, or set overwrite=True (for a folder).")
        if os.path.basename(prefix) != prefix:
            raise OutputError(f"prefix {prefix!r} is a part of a path: it is the first part of the names of the files.")
        if (folder / CONFIG).exists() or (folder / "zarr.json").exists():
            raise OutputError(f"{folder} is a run or a store, which a model can't be saved over: choose another path.")
        if save_anndata and self.adata is None:
            raise OutputError(f"{folder}: the model has no AnnData to save: its data is on disk already.")
        if folder.is_dir():
            # the model first, its list last: in between, `check_saved` sees that the others belong to another model
            if not save_anndata:
                self._check_no_other_data(folder / f"{prefix}{ADATA}")
            order = [f"{prefix}{name}" for name in (MODEL, STATE, ADATA, SAVED)]
            with write_files_aside(folder, order) as result:
                self._write(result, prefix, save_anndata, anndata_write_kwargs)
        else:
            with write_folder_aside(folder) as scratch:
                result = scratch / "result"
                result.mkdir()
                self._write(result, prefix, save_anndata, anndata_write_kwargs)
        if save_anndata and self.adata is not None:
            self._saved_data = SavedData.of(self.adata, folder / f"{prefix}{ADATA}")

    def _check_no_other_data(self, file: Path) -> None:
        """Raise OutputError if there is an AnnData at `file` that is not the model's own, as it was saved or loaded."""
        own = self._saved_data
        if file.is_file() and not (own is not None and own.is_still(self.adata, file)):
            raise OutputError(
                f"{file} is there, and load would take it for the data of this model: pass save_anndata=True to "
                "replace it, or move it away."
            )

    def _write(self, folder: Path, prefix: str, with_anndata: bool, write_options: Mapping[str, Any]) -> None:
        """Write the files of `save` into a folder."""
        parts = {name: part for name in PARTS if (part := self._find_part(name)) is not None}
        indices = {f"{name}_indices_": parts.get(name) for name in PARTS}
        try:
            run = TrainedRun(self.run.model.cpu(), self.run.genes, self.run.setup)
            write_scvi_model(run, folder / f"{prefix}{MODEL}", {"is_trained_": self.is_trained, **indices})
        finally:
            self.to_device(self.device)
        split = {name: torch.from_numpy(part) for name, part in parts.items()}
        content = {"format_version": RUN_FORMAT, "state": self.run.state, "split": split}
        if self.run.data is not None:
            content["data"] = self.run.data.to_record()
        torch.save(content, folder / f"{prefix}{STATE}")
        if with_anndata:
            assert self.adata is not None
            self.adata.write_h5ad(folder / f"{prefix}{ADATA}", **write_options)
        write_manifest(folder, list_name=f"{prefix}{SAVED}")

    @classmethod
    def load(
        cls,
        dir_path: str | Path,
        adata: Any = None,
        accelerator: str = "auto",
        device: Any = "auto",
        prefix: str | None = None,
        seed: int = 0,
    ) -> Self:
        """A model that `save`, a run or scvi-tools wrote; with `adata`, with the data saved with it, or without data.

        dir_path  may be in a bucket, and may be a minified store: it holds the weights, and can answer questions that
                  need no counts
        adata     as for SCVI, and also minified data; setup_anndata is not needed
        Raises SourceError if it is not a model, GeneError or ColumnError if genes or columns are missing from the data.
        """
        folder, prefix = to_place(dir_path), prefix or ""
        if is_minified_store(folder):
            store = MinifiedStore(folder)
            run = store.run
            adata = store if adata is None else adata
        else:
            run = load_scvi_tools(folder / f"{prefix}{MODEL}") if prefix else open_model(folder)
        parts = run.split
        outdated = check_saved(folder, prefix, with_data=adata is None)
        state = folder / f"{prefix}{STATE}"
        if state.is_file() and state.name not in outdated:
            content = load_tensors(state)
            with reading(str(state)):
                check_version(str(state), "model", content, RUN_FORMAT)
                run.data = DataSpec.from_record(content["data"]) if "data" in content else None
                run.state = content["state"]
                check_state(run.state or {})
                parts = {name: part.numpy() for name, part in content["split"].items()}
        saved = folder / f"{prefix}{ADATA}"
        reads_saved = adata is None and saved.is_file() and saved.name not in outdated
        if reads_saved:
            local = need_local(saved, "data beside a model is read")
            adata = read_anndata(local)
        where = "cpu" if accelerator == "cpu" else str(device)
        model = cls._of_run(run, adata, seed, where)
        model.is_trained = True
        model._keep_split(parts)
        if reads_saved:
            model._saved_data = SavedData.of(adata, local)
        return model
