"""Going on with a run: an interrupted one where it stopped, a finished one as the start of another."""

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from atlasvi.engine.distributed.launch import launch_prefix
from atlasvi.engine.model.covariates import Setup
from atlasvi.engine.model.model_options import ModelOptions
from atlasvi.engine.model.trained_run import CONFIG, MODEL, RUN_FORMAT, TrainedRun
from atlasvi.engine.training.checkpoint import CheckpointError, list_checkpoints, read_newest_checkpoint
from atlasvi.engine.training.settings import SettingError, Settings
from atlasvi.loaders.cells.open_cells import CellData, allow_fractions, select_genes
from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.manifest import read_json
from atlasvi.loaders.sources.data_spec import DataSpec
from atlasvi.loaders.store_files import check_version


def fingerprint(data: CellData) -> dict[str, Any]:
    """What tells data apart: sizes, gene names, the first block of counts. Raises CountsError if that holds others.

    So counts of another layer, or the same cells in another order, are not taken for those that a run began with.
    """
    genes = "\n".join(map(str, data.genes)).encode()
    parts = data.read_block(0).to_csr()
    wide = [part.astype(np.float64 if part.dtype.kind == "f" else np.int64) for part in parts]
    counts = b"".join(part.tobytes() for part in wide)
    return {
        "n_cells": data.n_cells,
        "n_genes": len(data.genes),
        "genes_sha256": hashlib.sha256(genes).hexdigest()[:16],
        "first_block_sha256": hashlib.sha256(counts).hexdigest()[:16],
    }


def read_saved(out: Path) -> dict[str, Any]:
    """The configuration that a run was started with. Raises SourceError if it is not there."""
    if not (out / CONFIG).exists():
        raise SourceError(f"{out}: there is no run to go on with: start it without --resume.")
    saved = read_json(out / CONFIG)
    check_version(str(out / CONFIG), "run", saved, RUN_FORMAT)
    if not isinstance(saved.get("settings"), dict) or "data" not in saved:
        raise SourceError(f"{out / CONFIG} is damaged: it holds no settings or no data: copy it again.")
    return saved


def read_data_spec(out: Path, saved: Mapping[str, Any]) -> DataSpec:
    """How the data of a run was opened. Raises SourceError if the configuration is damaged there."""
    with reading(str(out / CONFIG)):
        spec = DataSpec.from_record(saved["data"])
        layer = Setup.from_saved(saved["setup"]).layer if "setup" in saved else None
        return replace(spec, layer=spec.layer or layer)  # the first versions kept the layer there alone


def resume_command(data: CellData, out: Path, device: str = "auto") -> str:
    """The command line that goes on with a run: as it was launched, with the options that opened its data."""
    words = ["train", str(data.spec), "--out", str(out), *([] if device == "auto" else [f"--device={device}"])]
    return f"{launch_prefix()} {shlex.join([*words, '--resume'])}"


def explain_taken(out: Path) -> str:
    """What to do where a new run was to be written to `out`, and a run is there already."""
    if (out / MODEL).is_file():
        return (
            f"{out}: a finished run is there already: choose another --out, or train it further: "
            f"--start {shlex.quote(str(out))} --out OTHER."
        )
    return (
        f"{out}: a run that is not finished is there already: go on with it by giving the same command with --resume, "
        "or choose another --out."
    )


def merge_saved(
    out: Path, saved: Mapping[str, Any], asked: Mapping[str, Any], settings: Settings, data: CellData
) -> tuple[dict[str, Any], Settings]:
    """The saved configuration of a run to resume; `asked` and `settings` may repeat it, and need not say all of it.

    Raises SettingError if the data or what was given now differ from it.
    """
    began_with = read_data_spec(out, saved)
    if began_with.contradicts(data.spec) or any(saved.get(key) != value for key, value in fingerprint(data).items()):
        raise SettingError(
            f"{out}: the run was started with other data: with {began_with} as it was then, of {saved.get('n_cells')} "
            f"cells and {saved.get('n_genes')} genes; now it is {data.spec}, of {data.n_cells} cells and "
            f"{len(data.genes)} genes, and its genes or the counts of its first cells are others: resume the run with "
            "its data, or start another run in another place."
        )
    now = {key: value for key, value in asked.items() if value is not None}
    now.update({key: getattr(settings, key) for key in settings.model_fields_set})
    was = {**saved, **saved["settings"]}
    for key, value in now.items():
        if was.get(key) != value:
            raise SettingError(
                f"{out}: the run was started with {key} = {was.get(key)!r}, and now it is {value!r}: resume it as it "
                "was, or start another run in another place."
            )
    with reading(str(out / CONFIG)):
        return {key: saved.get(key) for key in asked}, Settings.model_validate(saved["settings"])


def prepare_start(
    run: TrainedRun, data: CellData, keys: Mapping[str, Any], settings: Settings
) -> tuple[CellData, Setup, Settings, dict[str, Any]]:
    """What it takes to train a run further: the data as its model takes it, its setup, settings with its model's
    options, and the state to begin from: weights, and where its directory holds them optimizer, epoch, step, history.

    keys  of obs, None or those that the run has
    Raises SettingError if keys or options of the model are given that are not the run's, GeneError if genes lack.
    """
    options = {name: getattr(run.model.settings, name) for name in ModelOptions.model_fields}
    has = run.setup.keys.as_asked()
    given = {name: getattr(settings, name) for name in settings.model_fields_set & options.keys()}
    for name, value in {**{key: value for key, value in keys.items() if value is not None}, **given}.items():
        if value != (was := {**has, **options}[name]):
            raise SettingError(f"The model to start from has {name} = {was!r}, and now it is {value!r}: leave it out.")
    state: dict[str, Any] = {"weights": run.model.state_dict(), "optimizer": None, "epoch": 0, "step": 0, "history": []}
    if run.state is not None:
        state.update(run.state)
    elif run.path is not None:
        state.update(_read_last_state(run))
    data = allow_fractions(data, run.model.settings.likelihood.takes_fractions)
    return (
        select_genes(data, run.genes),
        run.setup,
        settings.model_copy(update={**options, "freezing": run.freezing}),
        state,
    )


def _read_last_state(run: TrainedRun) -> dict[str, Any]:
    """What the last checkpoint of a finished run holds; nothing where a model is kept without checkpoints.

    Raises CheckpointError if the last one is damaged or not there: what is older is not where the run ended.
    """
    assert run.path is not None
    folder = run.path / "checkpoints"
    if not list_checkpoints(folder):
        return {}  # the weights are where we begin
    path, saved = read_newest_checkpoint(folder, older=False)
    with reading(str(path)):
        state = {name: saved[name] for name in ("weights", "optimizer", "epoch", "step", "history")}
    if state["step"] != (ended := run.result.get("steps", state["step"])):
        raise CheckpointError(
            f"{path}: the newest checkpoint is of step {state['step']:,}, and the run ended at step {ended:,}: copy "
            f"the last one again; or remove {folder}, to begin from the model's weights with a new optimizer."
        )
    return state
