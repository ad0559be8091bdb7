"""Runs, checkpoints and minified stores of every format that there was are read, and give what they gave."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from atlasvi.engine import load_run, minify, train
from atlasvi.engine.minified.minified_store import MinifiedStore
from atlasvi.engine.queries.minified_queries import read_latent
from atlasvi.loaders import open_cells

ARCHIVES = sorted((Path(__file__).parents[2] / "golden" / "runs").glob("*.tar.gz"))


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name.split(".")[0])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with a finished run, a stopped one, a minified store, their data and what they gave."""
    with tarfile.open(request.param) as file:
        file.extractall(tmp_path, filter="data")
    return tmp_path


def read_all_latents(store: Path) -> np.ndarray:
    return np.concatenate([np.stack(latents) for _, *latents in read_latent(MinifiedStore(store))], axis=1)


def test_a_finished_run_and_its_minified_store_are_read(old: Path):
    expected = np.load(old / "expected.npz")["latents"]
    assert np.array_equal(read_all_latents(old / "finished.mini"), expected)
    minify(load_run(old / "finished"), open_cells(old / "cells.h5ad", layer="counts"), old / "again.mini")
    assert np.allclose(read_all_latents(old / "again.mini"), expected, rtol=1e-4, atol=1e-6)


def test_a_stopped_run_goes_on(old: Path):
    run = train(open_cells(old / "cells.h5ad", layer="counts"), old / "stopped", resume=True)
    with np.load(old / "expected.npz") as expected:
        for name, weights in run.model.state_dict().items():
            assert torch.allclose(weights, torch.from_numpy(expected[f"resumed/{name}"]), rtol=1e-3, atol=1e-5), name
