"""Model directories of scvi-tools, read and written without scvi-tools."""

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atlasvi.engine.model.model_options import ModelSettings
from atlasvi.engine.model.trained_run import CONFIG, MODEL, TrainedRun, load_run
from atlasvi.engine.scvi_tools.registry import read_options, read_setup, write_init_params, write_registry
from atlasvi.engine.scvi_tools.weights import from_scvi_weights, to_scvi_weights
from atlasvi.engine.torch_files import read_torch_file
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.manifest import ADVICE, MANIFEST, hash_file, read_manifest
from atlasvi.loaders.outputs import write_folder_aside

SAVED = "atlasvi.json"  # the list of what `SCVI.save` wrote; not MANIFEST, by which a run is known
PARTS = ("train", "validation", "test")


def load_scvi_tools(path: str | Path) -> TrainedRun:
    """A model that scvi-tools saved (its directory, or the `model.pt` in it), ready for inference.

    Any SCVI model of scvi-tools 1.0 to 1.5. Raises SourceError if the file is not there, is no such model, is damaged,
    names a type that it should not, or was made with something that we do not have; nothing of it is executed.
    """
    path = Path(path)
    file = path / MODEL if path.is_dir() else path
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
    except Exception as error:  # what is not laid out as expected fails in any way it likes
        raise SourceError(f"{file}: not a model of scvi-tools as 1.x saves it ({error!r}).") from error


def read_registry(file: Path) -> dict[str, Any] | None:
    """What a model.pt of scvi-tools says of the data; None where it is no such file. Raises SourceError for damage."""
    if not file.is_file() or (file.parent / CONFIG).is_file():
        return None
    return read_torch_file(file)["attr_dict"]["registry_"]


def _read_split(attributes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Numbers of the cells that were trained, validated and tested on, as far as they were kept."""
    kept = {name: attributes.get(f"{name}_indices_") for name in PARTS}
    return {name: np.asarray(numbers, np.int64) for name, numbers in kept.items() if numbers is not None}


def save_scvi_tools(run: TrainedRun, path: str | Path, attributes: Mapping[str, Any] | None = None) -> None:
    """Write a model as a new directory that `scvi.model.SCVI.load` opens, with its data or with its minified data.

    attributes  of the model there, instead of the usual ones: `is_trained_`, `train_indices_`, ...
    Raises OutputError if `path` exists or can't be written.
    """
    with write_folder_aside(path) as scratch:
        (scratch / "result").mkdir()
        write_scvi_model(run, scratch / "result" / MODEL, attributes)


def write_scvi_model(run: TrainedRun, file: Path, attributes: Mapping[str, Any] | None = None) -> None:
    """Write the one file of such a directory."""
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
    buffer = io.BytesIO()  # torch's own writer says nothing of a disk that is full
    torch.save(content, buffer)
    with open(file, "wb") as written:
        written.write(buffer.getvalue())  # not getbuffer: see checkpoint.py


def check_saved(folder: Path, prefix: str, with_data: bool) -> bool:
    """Look at the files beside a model that `SCVI.save` wrote, by its list; others have no list, which is fine.

    with_data  whether its adata.h5ad is to be read, so that it is looked at too
    Returns whether they belong to the model: not if scvi-tools has saved another one over it since. Warns where one is
    missing. Raises SourceError where one is damaged; one of another size was written anew, and is taken as it is.
    """
    files = read_manifest(folder, f"{prefix}{SAVED}")
    if files is None:
        return True
    model, data = f"{prefix}{MODEL}", f"{prefix}adata.h5ad"
    if model in files and hash_file(folder / model) != tuple(files.pop(model)):
        warnings.warn(
            f"{folder / model} was written anew since {prefix}{SAVED} was, so what lies beside it (the optimizer, the "
            "split) is of another model and is not read.",
            stacklevel=3,
        )
        return False
    for name, (size, checksum) in files.items():
        path = folder / name
        if name == data and not with_data:
            continue
        if not path.is_file():
            warnings.warn(
                f"{path} is missing, which was saved with the model: what it held (in atlasvi.pt the optimizer, the "
                "history and the split, in adata.h5ad the data) is not there; copy the folder again, if it should be.",
                stacklevel=3,
            )
        elif path.stat().st_size == size and hash_file(path)[1] != checksum:
            raise SourceError(f"{path} is damaged: it does not match the checksum in {prefix}{SAVED}. {ADVICE}")
    return True


def open_model(path: str | Path) -> TrainedRun:
    """A finished run of ours, or a model directory of scvi-tools. Raises SourceError if it is neither."""
    # a directory of scvi-tools holds a model.pt, as ours do, and neither configuration nor list of files
    ours = any((Path(path) / name).is_file() for name in (CONFIG, MANIFEST))
    of_scvi_tools = (Path(path) / MODEL).is_file() and not ours
    return load_scvi_tools(path) if of_scvi_tools else load_run(path)
