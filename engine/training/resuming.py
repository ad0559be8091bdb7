"""Resume an interrupted run where it stopped, or start a new run from a finished one."""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from atlasvi.engine.distributed.launch import launch_prefix
from atlasvi.engine.model.covariates import Setup
from atlasvi.engine.model.model_options import ModelOptions
from atlasvi.engine.model.run_files import CONFIG, MODEL, RUN_FORMAT
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.training.checkpoint_content import KEPT_BY_MODEL
from atlasvi.engine.training.checkpoint_files import CheckpointError, list_checkpoints, read_newest_checkpoint
from atlasvi.engine.training.fingerprint import is_data_of_run
from atlasvi.engine.training.settings import RECIPES, SettingError, Settings
from atlasvi.loaders.cells.open_cells import CellData, allow_fractions, select_genes
from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import OutputError, SourceError
from atlasvi.loaders.manifest import read_json
from atlasvi.loaders.outputs import check_output_free
from atlasvi.loaders.places.object_path import Place
from atlasvi.loaders.sources.data_spec import DataSpec
from atlasvi.loaders.store_files import check_version


def read_saved(out: Place) -> dict[str, Any]:
    """The configuration that a run was started with. Raises SourceError if there is no run."""
    if not (out / CONFIG).exists():
        raise SourceError(f"{out}: there is no run to resume: start it without --resume.")
    saved = read_json(out / CONFIG)
    check_version(str(out / CONFIG), "run", saved, RUN_FORMAT)
    if not isinstance(saved.get("settings"), dict) or "data" not in saved:
        raise SourceError(f"{out / CONFIG} is damaged: it holds no settings or no data: copy it again.")
    if "recipe" not in saved["settings"]:  # a run of before there were recipes
        saved["settings"] = {"recipe": "scvi-tools", **RECIPES["scvi-tools"], **saved["settings"]}
    for name, value in {"least_steps_an_epoch": 0, "adam_beta2": 0.999}.items():  # so all runs were without the setting
        saved["settings"].setdefault(name, value)
    return saved


def read_data_spec(out: Place, saved: Mapping[str, Any]) -> DataSpec:
    """How the data of a run was opened. Raises SourceError if this part of the configuration is damaged."""
    with reading(str(out / CONFIG)):
        spec = DataSpec.from_record(saved["data"])
        if isinstance(saved["data"], str) and "setup" in saved:  # format 1 kept the layer only there
            spec = replace(spec, layer=spec.layer or Setup.from_saved(saved["setup"]).layer)
        return spec


def resume_command(data: CellData, out: Place, device: str = "auto") -> str:
    """The command that resumes a run: launched as before, with the options that opened its data."""
    words = ["train", str(data.spec), "--out", str(out), *([] if device == "auto" else [f"--device={device}"])]
    return f"{launch_prefix()} {shlex.join([*words, '--resume'])}"


def check_new_run(out: Place) -> None:
    """Raise OutputError if something is at `out` already; if it is a run, with what the user can do."""
    if (out / MODEL).is_file() and (out / CONFIG).is_file():
        raise OutputError(
            f"{out}: this is a finished run already: choose another --out, or train it further: "
            f"--start {shlex.quote(str(out))} --out OTHER."
        )
    if (out / CONFIG).is_file():
        raise OutputError(
            f"{out}: this is an unfinished run already: resume it with the same command and --resume, "
            "or choose another --out."
        )
    check_output_free(out)


def merge_saved(
    out: Place, saved: Mapping[str, Any], arguments: Mapping[str, Any], settings: Settings, data: CellData
) -> tuple[dict[str, Any], Settings]:
    """The saved configuration of a run to resume; `arguments` and `settings` may repeat parts of it.

    Raises SettingError if the data, an argument or a setting differs from what was saved.
    """
    began_with = read_data_spec(out, saved)
    if not is_data_of_run(saved, began_with, data):
        raise SettingError(
            f"{out}: the run was started with other data: with {began_with} as it was then, of {saved.get('n_cells')} "
            f"cells and {saved.get('n_genes')} genes; now it is {data.spec}, of {data.n_cells} cells and "
            f"{len(data.genes)} genes, and the layer, the genes, or the counts of the first or last cells differ: "
            "resume the run with its data, or start another run with another --out."
        )
    now = {key: value for key, value in arguments.items() if value is not None}
    now.update({key: getattr(settings, key) for key in settings.model_fields_set})
    was = {**saved, **saved["settings"]}
    for key, value in now.items():
        if was.get(key) != value:
            raise SettingError(
                f"{out}: the run was started with {key} = {was.get(key)!r}, and now it is {value!r}: resume it as it "
                "was, or start another run with another --out."
            )
    with reading(str(out / CONFIG)):
        return {key: saved.get(key) for key in arguments}, Settings.model_validate(saved["settings"])


def check_note(out: Place, saved: Mapping[str, Any], note: str | None) -> None:
    """Raises SettingError for another note than the run was started with: a run has one."""
    was = (saved.get("provenance") or {}).get("note")
    if note not in (None, was):
        raise SettingError(
            f"{out}: the run was started with the note {was!r}, and it is kept: resume it without another (--note)."
        )


def prepare_start(
    run: TrainedRun, data: CellData, keys: Mapping[str, Any], settings: Settings
) -> tuple[CellData, Setup, Settings, dict[str, Any]]:
    """What is needed to train a finished run further: the data as its model expects it, its setup, the settings with
    its model's options, and the state to begin from: weights and, if its directory holds them, optimizer and counters.

    keys  names of obs columns; None or those that the run has
    Raises SettingError if keys or model options differ from those of the run, GeneError if genes are missing.
    """
    options = {name: getattr(run.model.settings, name) for name in ModelOptions.model_fields}
    has = run.setup.keys.as_arguments()
    changed = {name: getattr(settings, name) for name in settings.model_fields_set & options.keys()}
    for name, value in {**{key: value for key, value in keys.items() if value is not None}, **changed}.items():
        if value != (was := {**has, **options}[name]):
            raise SettingError(f"The model to start from has {name} = {was!r}, not {value!r}: leave it out.")
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
    """The state in the last checkpoint of a finished run; empty if its model was saved without checkpoints.

    Raises CheckpointError if the last checkpoint is damaged or missing: an older one is not where the run ended.
    """
    assert run.path is not None
    folder = run.path / "checkpoints"
    if not list_checkpoints(folder):
        return {}  # begin from the weights alone
    path, saved = read_newest_checkpoint(folder, older=False)
    with reading(str(path)):
        state = {name: saved[name] for name in ("weights", *KEPT_BY_MODEL)}
    if state["step"] != (ended := run.result.get("steps", state["step"])):
        raise CheckpointError(
            f"{path}: the newest checkpoint is of step {state['step']:,}, and the run ended at step {ended:,}: copy "
            f"the last one again; or remove {folder}, to start from the model's weights with a new optimizer."
        )
    return state
