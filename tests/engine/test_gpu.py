"""Models, runs and what is asked of them on a CUDA device: the numbers of float64, and the same bits every time."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from torch import Tensor

from atlasvi.engine import SCVI as ScviFace
from atlasvi.engine.distributed.signals import TrainingInterrupted
from atlasvi.engine.minified.minified_store import MinifiedStore
from atlasvi.engine.minified.minify import minify
from atlasvi.engine.model.vae import VAE, kl_of_normals
from atlasvi.engine.scvi_tools.weights import from_scvi_weights, to_scvi_weights
from atlasvi.engine.training.train import train
from atlasvi.loaders.batches.batch import Batch
from tests.engine.model.test_model_options import batch_of, settings_of
from tests.engine.training.small_runs import assert_same_run, at_step, read_lines, write_cells
from tests.golden.cases import make_cases, make_cells, make_weights

pytestmark = pytest.mark.gpu

CASES = make_cases()
RUNS: dict[str, dict[str, Any]] = {
    "the recipe atlas, whose rate is another at each step": {"recipe": "atlas"},
    "nb": {},
    "zinb, gene-cell": {"gene_likelihood": "zinb", "dispersion": "gene-cell"},
    "gene-batch, batch norm": {"dispersion": "gene-batch", "use_batch_norm": "both", "use_layer_norm": "none"},
    "poisson": {"gene_likelihood": "poisson"},
    "bf16": {"precision": "bf16"},
    "latent library": {"use_observed_lib_size": False},
    "raw counts": {"log_variational": False},
    "normal": {"gene_likelihood": "normal"},
    "accumulated": {"accumulate": 2},
    "reduced rate": {"reduce_lr_on_plateau": True, "lr_patience": 0},
}
"""Settings of runs that differ in what the device computes."""


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    return write_cells(tmp_path / "cells.h5ad", n_cells=700, n_genes=120)


def train_on_gpu(cells: Path, out: Path, settings: dict[str, Any], epochs: int = 3, **more: Any):
    settings = {"n_hidden": 32, "n_latent": 5, "n_layers": 2, "batch_size": 64, **settings}
    return train(cells, out, batch_key="batch", epochs=epochs, device="cuda", settings=settings, **more)


def terms_and_gradients(model: VAE, batch: Batch, noise: dict[str, Tensor]) -> list[Tensor]:
    """Reconstruction, KL, KL of the library of each cell; then the gradients of their mean: float64, on the CPU."""
    model.train()
    qzm, qzv = model.encode(batch)
    z = model.to_latent(qzm + qzv.sqrt() * noise["z"].to(qzm))
    library, kl_library = None, torch.zeros(())
    if model.settings.has_latent_library:
        qlm, qlv = model.encode_library(batch)
        library = (qlm + qlv.sqrt() * noise["library"].to(qlm)).exp()
        kl_library = kl_of_normals(qlm, qlv, *model.library_prior(batch.codes, len(batch)))
    terms = [model.reconstruction(batch, z, library), kl_of_normals(qzm, qzv).sum(1), kl_library]
    sum(term.mean() for term in terms).backward()  # type: ignore[union-attr]
    gradients = [parameter.grad for parameter in model.parameters()]
    return [tensor.detach().double().cpu() for tensor in [*terms, *gradients] if tensor is not None]


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-label", "gene-cell"])
@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "normal"])
def test_losses_and_gradients_of_every_option_are_those_of_float64(likelihood: str, dispersion: str):
    cells = make_cells()
    noise = {name: torch.from_numpy(cells[f"{name}_noise"]) for name in ("z", "library")}
    for case in (name for name in CASES if name.startswith(f"{likelihood} {dispersion} ")):
        setup, options = CASES[case]
        batch, results = batch_of(setup, cells), []
        for device, dtype in (("cuda", torch.float32), ("cpu", torch.float64)):
            settings = settings_of(setup, options, cells)
            shapes = to_scvi_weights(VAE(settings, torch.Generator().manual_seed(0)))
            weights = {name: make_weights(name, tuple(tensor.shape)) for name, tensor in shapes.items()}
            model = from_scvi_weights(weights, settings).to(device, dtype)
            results.append(terms_and_gradients(model, batch.to(device), noise))
        largest = max(exact.norm() for exact in results[1])
        relative = 1e-4 if likelihood == "normal" else 1e-5  # torch's own operations, squares of large differences
        for got, exact in zip(*results, strict=True):
            # batch norm takes all of the gradient of the bias before it: what is left is rounding of what was there
            assert (got - exact).norm() <= relative * exact.norm() + 1e-6 * largest, case


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
def test_a_run_as_a_graph_is_to_the_bit_the_run_without(cells: Path, tmp_path: Path, settings: dict[str, Any]):
    runs = [train_on_gpu(cells, tmp_path / f"{graph}", {**settings, "cuda_graph": graph}) for graph in (True, False)]
    assert_same_run(*runs)
    assert runs[0].result["device"] == torch.cuda.get_device_name()


@pytest.mark.parametrize("graph", [True, False])
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(cells: Path, tmp_path: Path, graph: bool):
    runs = [
        train_on_gpu(cells, tmp_path / f"{k}", {"cuda_graph": graph}, seed=seed) for k, seed in enumerate((3, 3, 4))
    ]
    assert_same_run(*runs[:2])
    assert not torch.equal(runs[0].model.log_theta, runs[2].model.log_theta)


@pytest.mark.parametrize("step", [1, 5, 10, 16])
def test_a_run_stopped_at_a_step_resumes_to_the_same_bits(cells: Path, tmp_path: Path, monkeypatch, step: int):
    whole = train_on_gpu(cells, tmp_path / "whole", {})
    at_step(monkeypatch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(TrainingInterrupted):
        train_on_gpu(cells, tmp_path / "run", {})
    assert_same_run(whole, train(cells, tmp_path / "run", resume=True))


def test_a_run_learns_what_it_learns_on_the_cpu(cells: Path, tmp_path: Path):
    """Other noise and other last digits, the same loss."""
    runs = [
        train(cells, tmp_path / device, batch_key="batch", epochs=30, device=device, settings={"batch_size": 64})
        for device in ("cuda", "cpu")
    ]
    there, here = (run.result["validation"]["reconstruction_loss"] for run in runs)
    assert there == pytest.approx(here, rel=0.01)


def test_two_ranks_on_one_device_compute_what_one_does(cells: Path, tmp_path: Path):
    """NCCL wants a device for each rank; where there are fewer, the sums go through gloo."""
    curves = []
    for n in (1, 2):
        command = ["launch", "--nproc", n, "--", "train", cells, "--out", tmp_path / f"{n}", "--batch-key", "batch"]
        command += ["--epochs", 3, "--batch-size", 64, "--device", "cuda", "--set", "n_hidden=16"]
        done = subprocess.run(
            [sys.executable, "-m", "atlasvi.engine.cli.commands", *map(str, command)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        lines = [line for line in read_lines(tmp_path / f"{n}") if line["kind"] == "epoch"]
        curves.append([[line["train_elbo"], line["validation_elbo"]] for line in lines])
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-4)


def test_a_minified_store_made_on_the_device_is_that_of_the_cpu(cells: Path, tmp_path: Path):
    train_on_gpu(cells, tmp_path / "run", {})
    for device in ("cuda", "cpu"):
        minify(tmp_path / "run", cells, tmp_path / f"{device}.mini", device=device)
    there, here = (anndata.read_zarr(tmp_path / f"{device}.mini") for device in ("cuda", "cpu"))
    for name in ("scvi_latent_qzm", "scvi_latent_qzv"):
        np.testing.assert_allclose(there.obsm[name], here.obsm[name], rtol=1e-4, atol=1e-5)
    assert MinifiedStore(tmp_path / "cuda.mini").n_cells == here.n_obs


def test_questions_asked_on_the_device_have_the_answers_of_the_cpu(cells: Path):
    adata = anndata.read_h5ad(cells)
    ScviFace.setup_anndata(adata, batch_key="batch")
    model = ScviFace(adata, n_hidden=16, n_latent=4)
    model.train(max_epochs=3, accelerator="gpu")
    answers = []
    for device in ("cuda", "cpu"):
        model.to_device(device)
        answers.append([model.get_latent_representation(), model.get_normalized_expression(return_numpy=True)])
        assert np.isfinite(model.posterior_predictive_sample(indices=range(50)).todense()).all()
        assert model.get_elbo() == pytest.approx(-model.get_reconstruction_error()["reconstruction_loss"], rel=0.2)
        table = model.differential_expression(groupby="type", group1="B")
        assert np.isfinite(table["bayes_factor"]).all()
    np.testing.assert_allclose(answers[0][0], answers[1][0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(answers[0][1].mean(0), answers[1][1].mean(0), rtol=0.1)
