"""Model directories of scvi-tools, read and written without scvi-tools."""

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atlasvi.engine.model.model_options import ModelSettings
from atlasvi.engine.model.run_files import CONFIG, MODEL
from atlasvi.engine.model.trained_run import TrainedRun, load_run
from atlasvi.engine.scvi_tools.registry import read_options, read_setup, write_init_params, write_registry
from atlasvi.engine.scvi_tools.weights import from_scvi_weights, to_scvi_weights
from atlasvi.engine.torch_files import read_torch_file
from atlasvi.loaders.errors import AtlasviWarning, SourceError
from atlasvi.loaders.manifest import ADVICE, MANIFEST, has_content, read_manifest
from atlasvi.loaders.outputs import write_folder_aside
from atlasvi.loaders.places.object_path import Place, to_place

SAVED = "atlasvi.json"  # the list of the files of `SCVI.save`; another name than MANIFEST, which marks a run
PARTS = ("train", "validation", "test")


def load_scvi_tools(path: str | Place) -> TrainedRun:
    """A model that scvi-tools saved (its directory, or the `model.pt` in it), ready for inference.

    For all SCVI models of scvi-tools 1.0 to 1.5. Raises SourceError if the file does not exist, is no such model, is
    damaged, names a type that is not allowed, or uses an option that we do not have; no code in it is run.
    """
    place = to_place(path)
    file = place / MODEL if place.is_dir() else place
    content = read_torch_file(file)
    try:
        attributes = content["attr_dict"]
        setup = read_setup(attributes["registry_"], str(file))
        options = read_options(attributes["init_params_"], str(file))
        genes = [str(gene) for gene in content["var_names"]]
        settings = ModelSettings(n_genes=len(genes), **setup.sizes, **options.model_dump())
        return TrainedRun(
            from_scvi_weights(content["model_state_dict"], settings), genes, setup, split=_read_split(attributes)
        )
    except SourceError:
        raise
    except Exception as error:  # an unexpected layout can raise any exception
        raise SourceError(f"{file}: this is not a model that scvi-tools 1.x saved ({error!r}).") from error


def read_registry(file: Path) -> dict[str, Any] | None:
    """The registry in a model.pt of scvi-tools; None if it is no such file. Raises SourceError if it is damaged."""
    if not file.is_file() or (file.parent / CONFIG).is_file():
        return None
    return read_torch_file(file)["attr_dict"]["registry_"]


def _read_split(attributes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Indices of the training, validation and test cells, as far as they were saved."""
    kept = {name: attributes.get(f"{name}_indices_") for name in PARTS}
    return {name: np.asarray(numbers, np.int64) for name, numbers in kept.items() if numbers is not None}


def save_scvi_tools(run: TrainedRun, path: str | Path, attributes: Mapping[str, Any] | None = None) -> None:
    """Write a model as a new directory that `scvi.model.SCVI.load` opens, with its data or its minified data.

    attributes  attributes of the scvi-tools model that replace the default ones: `is_trained_`, `train_indices_`, ...
    Raises OutputError if `path` exists or can't be written.
    """
    with write_folder_aside(path) as scratch:
        (scratch / "result").mkdir()
        write_scvi_model(run, scratch / "result" / MODEL, attributes)


def write_scvi_model(run: TrainedRun, file: Path, attributes: Mapping[str, Any] | None = None) -> None:
    """Write the model.pt of such a directory."""
    content = {
        "model_state_dict": {**to_scvi_weights(run.model), "pyro_param_store": {"params": {}, "constraints": {}}},
        "var_names": np.array(run.genes, object),
        "attr_dict": {
            "registry_": write_registry(run.setup, run.model.settings, run.genes),
            "init_params_": write_init_params(run.model.settings),
            "is_trained_": True,
            "train_indices_": None,
            "validation_indices_": None,
            "test_indices_": None,
            "history_": {},
            "run_name_": "atlasvi",
            "run_id_": "",
            "get_normalized_function_name_": "get_normalized_expression",
            **(attributes or {}),
        },
    }
    buffer = io.BytesIO()  # torch's own writer does not report a full disk
    torch.save(content, buffer)
    with open(file, "wb") as written:
        written.write(buffer.getvalue())  # not getbuffer: see checkpoint_files.py


def check_saved(folder: Place, prefix: str, with_data: bool) -> set[str]:
    """Check the files beside a model by the list that `SCVI.save` wrote; other models have no list, which is fine.

    with_data  True: adata.h5ad will be read, so it is checked too
    Returns the names of the files that belong to an earlier model: after this list was written, another model was saved
    there, by scvi-tools or by a process that was killed. Its data does not belong to them if the file has changed too.
    Warns of these, and if a file is missing. Raises SourceError if one is damaged; a file of another size was
    rewritten, and is accepted.
    """
    listed = read_manifest(folder, f"{prefix}{SAVED}")
    if listed is None:
        return set()
    # a hub folder has texts too, which do not matter here and may be edited by hand
    files = {name: found for name, found in listed.items() if name.endswith((".pt", ".h5ad"))}
    model, data = f"{prefix}{MODEL}", f"{prefix}adata.h5ad"
    if model in files and not has_content(folder / model, *files.pop(model)):
        if not with_data or data not in files or not has_content(folder / data, *files[data]):
            files.pop(data, None)
        warnings.warn(
            f"{folder / model} was written after {prefix}{SAVED}, so files beside it belong to another model and are "
            f"not read: {', '.join(files)}.",
            AtlasviWarning,
            stacklevel=3,
        )
        return set(files)
    for name, (size, checksum) in files.items():
        path = folder / name
        if name == data and not with_data:
            continue
        if not path.is_file():
            warnings.warn(
                f"{path} is missing, which was saved with the model (atlasvi.pt holds the optimizer, the history and "
                "the split, adata.h5ad the data): copy the folder again if you need it.",
                AtlasviWarning,
                stacklevel=3,
            )
        elif path.stat().st_size == size and not has_content(path, size, checksum):
            raise SourceError(f"{path} is damaged: it does not match the checksum in {prefix}{SAVED}. {ADVICE}")
    return set()


def open_model(path: str | Place) -> TrainedRun:
    """A finished run of ours, or a model directory of scvi-tools. Raises SourceError if `path` is neither."""
    # a directory of scvi-tools holds a model.pt too, but neither a configuration nor a list of files
    place = to_place(path)
    ours = any((place / name).is_file() for name in (CONFIG, MANIFEST))
    of_scvi_tools = (place / MODEL).is_file() and not ours
    return load_scvi_tools(place) if of_scvi_tools else load_run(place)
