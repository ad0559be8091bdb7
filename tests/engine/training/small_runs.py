"""Small cells, runs over them, and ways to end a run early: for the tests of this folder and of others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch

from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.training.progress import RunLog

SMALL: dict[str, Any] = {"n_hidden": 16, "n_latent": 4, "n_layers": 2, "batch_size": 32}


def write_cells(path: Path, n_cells: int = 200, n_genes: int = 30, seed: int = 0, scale: float = 1.0) -> Path:
    """An h5ad of two types of cell in three batches, with columns that can and can't be covariates."""
    rng = np.random.default_rng(seed)
    types = rng.integers(0, 2, n_cells)
    profile = rng.gamma(1.0, 2.0, (2, n_genes))
    counts = rng.poisson(profile[types] * rng.gamma(5, 0.2, (n_cells, 1))).astype(np.float32) * scale
    counts[:, 0] += scale
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical(rng.choice(["b1", "b2", "b3"], n_cells), categories=["b1", "b2", "b3", "unused"]),
            "lane": rng.integers(3, 6, n_cells),
            "type": np.array(["B", "T"])[types],
            "one": "same",
            "gaps": pd.Categorical(np.where(np.arange(n_cells) == 4, None, "x")),
            "split": np.array(["train", "train", "validation", "test"])[np.arange(n_cells) % 4],
        },
        index=[f"c{k}" for k in range(n_cells)],
    )
    anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{k}" for k in range(n_genes)])).write_h5ad(path)
    return path


def read_lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_times(lines: list[dict]) -> list[dict]:
    """Epochs without their times; lines of steps are written by the clock."""
    epochs = [line for line in lines if line["kind"] == "epoch"]
    return [{key: value for key, value in line.items() if key not in ("seconds", "cells_per_s")} for line in epochs]


def assert_same_run(one: TrainedRun, other: TrainedRun) -> None:
    """Weights to the bit, and all that was reported but the times."""
    for (name, first), second in zip(one.model.state_dict().items(), other.model.state_dict().values()):
        assert torch.equal(first, second), name
    assert one.path is not None
    assert other.path is not None
    assert without_times(read_lines(one.path)) == without_times(read_lines(other.path))
    for part in ("train", "validation", "best_epoch", "epochs", "steps"):
        assert one.result[part] == other.result[part]


class Killed(BaseException):
    """Ends a run where it stands, as SIGKILL would."""


def at_step(monkeypatch, step: int, act: Callable[[], None]) -> None:
    """Act once, right after that optimizer step."""
    log, done = RunLog.step, []

    def log_and_act(self: RunLog, epoch: int, batch: int, number: int, *rest: Any) -> None:
        log(self, epoch, batch, number, *rest)
        if number == step and not done:
            done.append(number)
            act()

    monkeypatch.setattr(RunLog, "step", log_and_act)


SCHEDULE: dict[str, Any] = {"batch_key": "batch", "epochs": 3, "settings": {**SMALL, "validation_fraction": 0.2}}
FREQUENT: dict[str, Any] = {**SCHEDULE, "settings": {**SCHEDULE["settings"], "checkpoint_minutes": 1e-9}}
ATLAS: dict[str, Any] = {**SCHEDULE, "settings": {**FREQUENT["settings"], "recipe": "atlas"}}
STEPS_AN_EPOCH = 6  # 162 cells in minibatches of 32
