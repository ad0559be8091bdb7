"""The normal likelihood takes numbers that are no counts: in memory, from files, on the command line and resumed."""

import signal
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from typer.testing import CliRunner

from atlasvi.engine import SCVI, load_run, minify, train
from atlasvi.engine.cli.commands import app
from atlasvi.engine.distributed.signals import TrainingInterrupted
from atlasvi.loaders import ingest, open_cells
from atlasvi.loaders.errors import CountsError, SourceError
from tests.engine.training.small_runs import assert_same_run, at_step

SETTINGS = {"gene_likelihood": "normal", "n_hidden": 8, "n_latent": 3, "n_layers": 1, "batch_size": 32}


@pytest.fixture
def logged(tmp_path: Path) -> anndata.AnnData:
    """Normalised, logarithmic values, as scanpy makes them."""
    rng = np.random.default_rng(0)
    counts = sparse.random(90, 30, 0.4, "csr", np.float32, rng, data_rvs=lambda n: rng.integers(1, 9, n))
    values = np.log1p(counts.toarray() * 7.3).astype(np.float32)
    values[:, 0] = 1.5
    obs = pd.DataFrame({"batch": np.tile(["a", "b", "c"], 30)}, index=[f"c{k}" for k in range(90)])
    return anndata.AnnData(sparse.csr_matrix(values), obs)


def test_an_anndata_is_trained_on_and_asked(logged: anndata.AnnData):
    SCVI.setup_anndata(logged, batch_key="batch")
    model = SCVI(logged, gene_likelihood="normal")
    model.train(max_epochs=1)
    assert np.isfinite(float(model.get_elbo()))
    assert np.isfinite(float(model.get_marginal_ll(n_mc_samples=3)))
    assert model.get_normalized_expression(transform_batch="b").shape == (90, 30)
    with pytest.raises(CountsError, match="not whole numbers"):
        SCVI(logged, gene_likelihood="nb")


@pytest.mark.parametrize("value", [-0.5, np.nan, np.inf])
def test_numbers_below_0_and_what_is_not_finite_are_refused(logged: anndata.AnnData, value: float):
    logged.X.data[7] = value
    SCVI.setup_anndata(logged)
    with pytest.raises(CountsError, match=r"NaN|infinite|negative"):
        SCVI(logged, gene_likelihood="normal")


def test_a_file_gives_the_latents_of_the_anndata_and_a_run_of_it_is_minified_by_its_path(
    logged: anndata.AnnData, tmp_path: Path
):
    path = tmp_path / "logged.h5ad"
    logged.write_h5ad(path)
    words = ["--set", "gene_likelihood=normal", "--set", "n_hidden=8", "--set", "n_latent=3", "--epochs", "1"]
    done = CliRunner().invoke(app, ["train", str(path), "--out", str(tmp_path / "run"), "--batch-key", "batch", *words])
    assert done.exit_code == 0, done.output
    minify(tmp_path / "run", path, tmp_path / "mini")
    run = train(path, tmp_path / "again", batch_key="batch", epochs=1, settings=SETTINGS)
    assert np.isfinite(run.result["train"]["elbo"])
    further = train(path, tmp_path / "further", epochs=1, start=run)
    assert further.model.settings.gene_likelihood == "normal"
    values = open_cells(path, values="numbers").read_block(0).to_csr()[2]
    assert values.dtype == np.float32
    assert np.array_equal(values, logged.X.data)
    assert load_run(tmp_path / "run").model.settings.gene_likelihood == "normal"


def test_a_cell_store_keeps_whole_counts_alone(logged: anndata.AnnData, tmp_path: Path):
    logged.write_h5ad(tmp_path / "logged.h5ad")
    with pytest.raises(SourceError, match="keeps whole counts"):
        ingest(f"{tmp_path / 'logged.h5ad'}::values=numbers", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_stopped_run_goes_on_without_being_told_its_likelihood_again(
    logged: anndata.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "logged.h5ad"
    logged.write_h5ad(path)
    schedule = {"batch_key": "batch", "epochs": 3, "settings": SETTINGS}
    whole = train(path, tmp_path / "whole", **schedule)
    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(TrainingInterrupted):
            train(path, tmp_path / "run", **schedule)
    assert_same_run(whole, train(path, tmp_path / "run", resume=True))
