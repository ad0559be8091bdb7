"""Measurements of benchmarks/atlas.py that no command makes: bytes held for each cell, and right cell types."""

import json
import tracemalloc
from pathlib import Path

from type_neighbours import find_neighbours, measure_right

from atlasvi.engine import MinifiedStore
from atlasvi.engine.model.covariates import SetupKeys, learn_setup
from atlasvi.engine.training.run_parts import RunParts, prepare_run
from atlasvi.engine.training.settings import resolve_settings
from atlasvi.loaders import CellStore

REFERENCE, ASKED = 40_000, 5_000


def hold(path: str) -> dict:
    """The most bytes that numpy and Python hold while a run with three covariates is prepared, and afterwards."""
    store = CellStore(path)
    keys = SetupKeys(
        batch_key="batch", categorical_covariate_keys=("cell_type",), continuous_covariate_keys=("library",)
    )
    settings = resolve_settings(None, {"epochs": 1, "batch_size": 1024})

    def prepare() -> RunParts:
        setup = learn_setup(store, keys)
        return prepare_run(store, Path("run"), setup, {"seed": 0, "split_column": None}, settings, "cpu")

    prepare()  # imports and compiles
    tracemalloc.start()
    parts = prepare()
    held, peak = tracemalloc.get_traced_memory()
    return {"cells": len(parts.codes["batch"]), "held_bytes": held, "peak_bytes": peak}


def judge_types(mini: str, run: str) -> dict:
    """How often most of a cell's neighbours in the latent space have its true type; and the held-out ELBO.

    A minified store has the random order of the cell store, so its first cells are a random sample.
    """
    store = MinifiedStore(mini)
    asked = min(ASKED, store.n_cells // 9)
    reference = min(REFERENCE, store.n_cells - asked)
    latents = store.read_latent(0, asked + reference)[0]
    types = store.read_column("cell_type", 0, asked + reference).cat.codes.to_numpy()
    near = types[asked:][find_neighbours(latents[:asked], latents[asked:])]
    result = json.loads((Path(run) / "result.json").read_text())
    return {
        "right": measure_right(near, types[:asked]),
        "asked": asked,
        "reference": reference,
        "elbo": result["validation"]["elbo"],
    }
