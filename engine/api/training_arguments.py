"""scvi-tools' arguments of `train` as settings of a run, its split, and a run's history as scvi-tools shows it."""

import difflib
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from atlasvi.engine.training.settings import SettingError, heuristic_epochs

NEVER = 2**31  # epochs to the first validation, where none is asked for
PLAN = {
    "optimizer": "optimizer",
    "lr": "learning_rate",
    "eps": "adam_eps",
    "weight_decay": "weight_decay",
    "n_epochs_kl_warmup": "kl_warmup_epochs",
    "n_steps_kl_warmup": "kl_warmup_steps",
    "min_kl_weight": "min_kl_weight",
    "max_kl_weight": "max_kl_weight",
    "reduce_lr_on_plateau": "reduce_lr_on_plateau",
    "lr_factor": "lr_factor",
    "lr_patience": "lr_patience",
    "lr_threshold": "lr_threshold",
    "lr_scheduler_metric": "lr_scheduler_metric",
    "lr_min": "lr_min",
}
TRAINER = {
    "early_stopping_monitor": "early_stopping_monitor",
    "early_stopping_min_delta": "early_stopping_min_delta",
    "early_stopping_patience": "early_stopping_patience",
    "early_stopping_warmup_epochs": "early_stopping_warmup_epochs",
    "check_val_every_n_epoch": "validate_every",
    "max_steps": "max_steps",
    "accumulate_grad_batches": "accumulate",
}
# what changes no result here: how Lightning shows, logs and compiles, and what is so anyway
WITHOUT_EFFECT = {
    "compile",
    "compile_kwargs",
    "fused_optimizer",
    "on_step",
    "on_epoch",
    "early_stopping_mode",
    "enable_progress_bar",
    "simple_progress_bar",
    "progress_bar_refresh_rate",
    "enable_model_summary",
    "enable_checkpointing",
    "log_every_n_steps",
    "logger",
    "benchmark",
    "strategy",
    "default_root_dir",
    "callbacks",
}
# of these, what a user would wait for in vain
MISSED = ("callbacks", "logger", "strategy", "default_root_dir", "enable_checkpointing", "on_step")


def translate_arguments(
    n_cells: int,
    max_epochs: int | None,
    batch_size: int,
    early_stopping: bool,
    plan: Mapping[str, Any],
    trainer: Mapping[str, Any],
) -> dict[str, Any]:
    """Settings of a run (see `Settings`) that trains as scvi-tools would; its defaults where nothing is given.

    Raises SettingError for an argument that is not known, or means something that we do not have.
    """
    settings: dict[str, Any] = {
        "epochs": heuristic_epochs(n_cells) if max_epochs is None else max_epochs,
        "batch_size": batch_size,
        "early_stopping": early_stopping,
        "keep": "last",
        "kl_warmup_epochs": 400,
    }
    for given, names, what in ((plan, PLAN, "plan_kwargs"), (trainer, TRAINER, "train")):
        for name, value in given.items():
            if name in names:
                settings[names[name]] = value
            elif name not in WITHOUT_EFFECT and value:  # what is None or False asks for nothing
                raise SettingError(explain_argument(name, what, names))
    if settings["kl_warmup_epochs"] is None and settings.get("kl_warmup_steps") is None:
        settings["kl_warmup_epochs"] = 0  # with neither the weight is full from the start
    watches = early_stopping or settings.get("reduce_lr_on_plateau")
    if settings.get("validate_every") is None:
        settings["validate_every"] = 1 if watches else NEVER
    return {name: value for name, value in settings.items() if value is not None or name == "kl_warmup_epochs"}


def explain_argument(name: str, what: str, known: Iterable[str]) -> str:
    """The sentence for an argument that `what` does not take: those that are near, or all that it takes."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, 3)
    return f"{what} takes no {name!r} here; " + (
        f"did you mean {', '.join(near)}?" if near else f"it takes {', '.join(known)}."
    )


def warn_without_effect(
    datasplitter: Mapping[str, Any] | None, trainer: Mapping[str, Any], devices: Any = "auto"
) -> None:
    """Warn of arguments of `train` that have no effect here, though something was to come of them."""
    given = [f"datasplitter_kwargs[{name!r}]" for name in datasplitter or {} if name != "external_indexing"]
    given += [name for name in MISSED if trainer.get(name)]
    given += ["devices"] if devices not in ("auto", 1, "1", [0]) else []
    if given:
        warnings.warn(
            f"train: no effect here of {', '.join(given)}; docs/coming-from-scvi-tools.md says what there is instead.",
            UserWarning,
            stacklevel=3,
        )


def explain_end(what: str, kept: int | None, run_dir: Any) -> str:
    """The sentences for a training that ended before its time, in words of Python.

    what  happened; kept  the step whose weights the model keeps, None: it is as it was before
    """
    weights = "is as it was before" if kept is None else f"keeps the weights and the history of step {kept}"
    keeps = "run_dir= keeps a run that can be resumed" if run_dir is None else "give resume=True to resume the run"
    advice = "" if what.startswith("stopped") else " Try a lower learning rate (plan_kwargs), and look at the counts."
    return f"Training ended: {what}. The model {weights}; train() goes on from there ({keeps}).{advice}"


def split_cells(
    n_cells: int,
    train_size: float | None,
    validation_size: float | None,
    shuffle: bool,
    seed: int,
    external: Iterable[np.ndarray | None] | None = None,
) -> dict[str, np.ndarray]:
    """int64 numbers of the cells to train, validation and test, as scvi-tools counts them.

    train_size, validation_size  shares; None: 0.9, and the rest. What is left over is tested on
    shuffle   False takes them in the order of the data
    external  the three (or fewer) lists of numbers themselves
    Raises SettingError for shares that are none, numbers that are not there or in two parts.
    """
    if external is not None:
        parts = [np.zeros(0, np.int64) if part is None else np.asarray(part, np.int64) for part in external]
        parts += [np.zeros(0, np.int64)] * (3 - len(parts))
        together = np.concatenate(parts)
        if len(np.unique(together)) < len(together) or (
            len(together) and not 0 <= together.min() <= together.max() < n_cells
        ):
            raise SettingError(f"external_indexing: numbers of cells are from 0 to {n_cells - 1}, each in one part.")
        return dict(zip(("train", "validation", "test"), parts))
    train_size = 0.9 if train_size is None else train_size
    if not 0 < train_size <= 1:
        raise SettingError(f"train_size is {train_size}: a share of the cells, above 0 and up to 1.")
    if validation_size is not None and not (0 <= validation_size < 1 and train_size + validation_size <= 1):
        raise SettingError(f"validation_size is {validation_size}, train_size {train_size}: shares, together up to 1.")
    n_train = math.ceil(train_size * n_cells)
    n_validation = n_cells - n_train if validation_size is None else math.floor(n_cells * validation_size)
    order = np.random.default_rng([seed, 0]).permutation(n_cells) if shuffle else np.arange(n_cells)
    # as there: validation cells first
    cuts = n_validation, n_validation + n_train
    validation, train, test = (np.sort(part) for part in np.split(order, cuts))
    return {"train": train, "validation": validation, "test": test}


def name_parts(parts: Mapping[str, np.ndarray], n_cells: int) -> pd.Categorical:
    """The part of each cell by name, as a column of obs; cells in none are missing."""
    codes = np.full(n_cells, -1, np.int8)
    for code, numbers in enumerate(parts.values()):
        codes[numbers] = code
    return pd.Categorical.from_codes(codes, list(parts))


def show_history(lines: Iterable[Mapping[str, Any]]) -> dict[str, pd.DataFrame]:
    """A run's metrics by scvi-tools' names, tables of a row an epoch; the ELBO with its sign: less is better."""
    columns: dict[str, dict[int, float]] = {}
    for line in lines:
        for part in ("train", "validation"):
            for ours, theirs, sign in (
                ("elbo", "elbo", -1),
                ("reconstruction_loss", "reconstruction_loss", 1),
                ("kl", "kl_local", 1),
            ):
                if f"{part}_{ours}" in line:
                    columns.setdefault(f"{theirs}_{part}", {})[line["epoch"]] = sign * line[f"{part}_{ours}"]
                    columns.setdefault(f"kl_global_{part}", {})[line["epoch"]] = 0.0  # scVI has none
            if f"{part}_loss" in line:
                columns.setdefault(f"{part}_loss", {})[line["epoch"]] = line[f"{part}_loss"]
        columns.setdefault("kl_weight", {})[line["epoch"]] = line["kl_weight"]
    return {
        name: pd.DataFrame({name: list(values.values())}, index=pd.Index(list(values), name="epoch"))
        for name, values in columns.items()
    }
