"""Translate scvi-tools' arguments of `train` into settings and a split, and a run's history into scvi-tools' tables."""

import difflib
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from atlasvi.engine.training.settings import SettingError, heuristic_epochs
from atlasvi.loaders.errors import AtlasviWarning

NEVER = 2**31  # check_val_every_n_epoch that means no validation
PLAN = {
    "recipe": "recipe",
    "learning_rate_warmup": "learning_rate_warmup",
    "learning_rate_decay": "learning_rate_decay",
    "initial_weights": "initial_weights",
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
# arguments that change no result here: for Lightning's displays, logs and compilation, and for what is always so
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
# those of them whose effect a user might wait for in vain
MISSED = ("callbacks", "logger", "strategy", "default_root_dir", "enable_checkpointing", "on_step")


def translate_arguments(
    n_cells: int,
    max_epochs: int | None,
    batch_size: int,
    early_stopping: bool,
    plan: Mapping[str, Any],
    trainer: Mapping[str, Any],
) -> dict[str, Any]:
    """The settings of a run (see `Settings`) that trains as scvi-tools would; its defaults for missing arguments.

    Raises SettingError for an unknown argument, or a value that we do not support.
    """
    settings: dict[str, Any] = {
        "epochs": heuristic_epochs(n_cells) if max_epochs is None else max_epochs,
        "batch_size": batch_size,
        "early_stopping": early_stopping,
        "keep": "last",
        "recipe": "scvi-tools",
        **({} if plan.get("recipe") == "atlas" else {"kl_warmup_epochs": 400}),
    }
    for arguments, names, what in ((plan, PLAN, "plan_kwargs"), (trainer, TRAINER, "train")):
        for name, value in arguments.items():
            if name in names:
                settings[names[name]] = value
            elif name not in WITHOUT_EFFECT and value:  # None and False need no support
                raise SettingError(explain_argument(name, what, names))
    if settings.get("kl_warmup_epochs", 0) is None and settings.get("kl_warmup_steps") is None:
        settings["kl_warmup_epochs"] = 0  # without any warm-up the weight is full from the start
    watches = early_stopping or settings.get("reduce_lr_on_plateau")
    if settings.get("validate_every") is None:
        settings["validate_every"] = 1 if watches else NEVER
    return {name: value for name, value in settings.items() if value is not None or name == "kl_warmup_epochs"}


def explain_argument(name: str, what: str, known: Iterable[str]) -> str:
    """A sentence about an argument that `what` does not have: similar ones, or all that it has."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, 3)
    return f"{what} takes no {name!r} here; " + (
        f"did you mean {', '.join(near)}?" if near else f"it takes {', '.join(known)}."
    )


def warn_without_effect(
    datasplitter: Mapping[str, Any] | None, trainer: Mapping[str, Any], devices: Any = "auto"
) -> None:
    """Warn of arguments of `train` that have no effect here, although the user expects one."""
    without_effect = [f"datasplitter_kwargs[{name!r}]" for name in datasplitter or {} if name != "external_indexing"]
    without_effect += [name for name in MISSED if trainer.get(name)]
    without_effect += ["devices"] if devices not in ("auto", 1, "1", [0]) else []
    if without_effect:
        warnings.warn(
            f"train: {', '.join(without_effect)} have no effect here; docs/coming-from-scvi-tools.md has alternatives.",
            AtlasviWarning,
            stacklevel=3,
        )


def explain_end(what: str, kept: int | None, run_dir: Any) -> str:
    """The sentences about a training that ended early, in terms of Python calls.

    what  what happened
    kept  the step whose weights the model keeps; None: it is as it was before
    """
    weights = "is as it was before" if kept is None else f"keeps the weights and the history of step {kept}"
    keeps = "run_dir= keeps a run that can be resumed" if run_dir is None else "pass resume=True to resume the run"
    advice = "" if what.startswith("stopped") else " Try a lower learning rate (plan_kwargs), and look at the counts."
    return f"Training ended: {what}. The model {weights}; train() continues from there ({keeps}).{advice}"


def split_cells(
    n_cells: int,
    train_size: float | None,
    validation_size: float | None,
    shuffle: bool,
    seed: int,
    external: Iterable[np.ndarray | None] | None = None,
) -> dict[str, np.ndarray]:
    """int64 indices of the cells to train, validate and test on, as scvi-tools splits them.

    train_size, validation_size  proportions; None: 0.9, and the rest. Cells in neither are test cells
    shuffle   False takes the cells in the order of the data
    external  the three (or fewer) lists of indices themselves
    Raises SettingError for invalid proportions, and indices that are out of range or in two parts.
    """
    if external is not None:
        parts = [np.zeros(0, np.int64) if part is None else np.asarray(part, np.int64) for part in external]
        parts += [np.zeros(0, np.int64)] * (3 - len(parts))
        together = np.concatenate(parts)
        if len(np.unique(together)) < len(together) or (
            len(together) and not 0 <= together.min() <= together.max() < n_cells
        ):
            raise SettingError(f"external_indexing: indices must be from 0 to {n_cells - 1}, each in one part only.")
        return dict(zip(("train", "validation", "test"), parts))
    train_size = 0.9 if train_size is None else train_size
    if not 0 < train_size <= 1:
        raise SettingError(f"train_size is {train_size}: it must be above 0 and at most 1.")
    if validation_size is not None and not (0 <= validation_size < 1 and train_size + validation_size <= 1):
        raise SettingError(f"validation_size is {validation_size}, train_size {train_size}: the sum must be at most 1.")
    n_train = math.ceil(train_size * n_cells)
    n_validation = n_cells - n_train if validation_size is None else math.floor(n_cells * validation_size)
    order = np.random.default_rng([seed, 0]).permutation(n_cells) if shuffle else np.arange(n_cells)
    # as in scvi-tools: validation cells first
    cuts = n_validation, n_validation + n_train
    validation, train, test = (np.sort(part) for part in np.split(order, cuts))
    return {"train": train, "validation": validation, "test": test}


def name_parts(parts: Mapping[str, np.ndarray], n_cells: int) -> pd.Categorical:
    """The part of each cell by name, as a column of obs; cells in no part are missing values."""
    codes = np.full(n_cells, -1, np.int8)
    for code, numbers in enumerate(parts.values()):
        codes[numbers] = code
    return pd.Categorical.from_codes(codes, list(parts))


def show_history(lines: Iterable[Mapping[str, Any]]) -> dict[str, pd.DataFrame]:
    """A run's metrics by scvi-tools' names, tables with a row for each epoch; the ELBO has the opposite sign."""
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
