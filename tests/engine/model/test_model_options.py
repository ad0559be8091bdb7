"""Every option of scvi-tools' SCVI: what it computes there, what our model computes from the same weights."""

import math
import zlib
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from atlasvi.engine.minified.minified_store import MinifiedStore
from atlasvi.engine.minified.minify import minify
from atlasvi.engine.model.model_options import ModelSettings
from atlasvi.engine.model.trained_run import TrainedRun, load_run
from atlasvi.engine.model.vae import VAE, kl_of_normals
from atlasvi.engine.queries.minified_queries import read_expression
from atlasvi.engine.scvi_tools.model_directories import open_model, save_scvi_tools
from atlasvi.engine.scvi_tools.weights import from_scvi_weights, to_scvi_weights
from atlasvi.engine.training.train import train
from atlasvi.loaders.batches.batch import Batch
from atlasvi.loaders.manifest import write_json
from tests.golden.cases import N_CELLS, N_GENES, make_cases, make_cells, make_weights

CASES = make_cases()
LIKELIHOODS = ("nb", "zinb", "poisson", "normal")


def settings_of(setup: dict[str, Any], options: dict[str, Any], cells: dict[str, np.ndarray]) -> ModelSettings:
    """The sizes that scvi-tools finds in the data."""

    def count(key: str) -> int:
        return len(np.unique(cells[setup[key]])) if key in setup else 1

    return ModelSettings(
        n_genes=N_GENES,
        n_batches=count("batch_key"),
        n_labels=count("labels_key"),
        n_categories=tuple(len(np.unique(cells[key])) for key in setup.get("categorical_covariate_keys", ())),
        n_continuous=len(setup.get("continuous_covariate_keys", ())),
        use_size_factor="size_factor_key" in setup,
        **{"n_hidden": 8, "n_latent": 4, "dropout_rate": 0.0, **options},
    )


def batch_of(setup: dict[str, Any], cells: dict[str, np.ndarray]) -> Batch:
    """The cells as the loader hands them out."""
    counts = torch.from_numpy(cells["counts"])
    rows, genes = counts.nonzero(as_tuple=True)
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(rows, minlength=len(counts)).cumsum(0)])
    codes = {}
    for name in ("batch", "labels"):
        if f"{name}_key" in setup:
            codes[name] = torch.from_numpy(np.unique(cells[setup[f"{name}_key"]], return_inverse=True)[1])
    if keys := setup.get("categorical_covariate_keys"):
        columns = [np.unique(cells[key], return_inverse=True)[1] for key in keys]
        codes["categories"] = torch.from_numpy(np.stack(columns, axis=1))
    if keys := setup.get("continuous_covariate_keys"):
        codes["continuous"] = torch.from_numpy(np.stack([cells[key] for key in keys], axis=1))
    if "size_factor_key" in setup:
        codes["size_factor"] = torch.from_numpy(cells["factor"])
    return Batch(
        indptr.int(),
        genes.to(torch.uint16),
        counts[rows, genes].to(torch.uint16),
        counts.sum(1),
        torch.arange(len(counts)),
        N_GENES,
        codes,
    )


def plain_terms(model: VAE, batch: Batch, cells: dict[str, np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
    """Reconstruction, KL and KL of the library [cells] for the noise that the golden numbers were made with."""
    qzm, qzv = model.encode(batch)
    z = model.to_latent(qzm + qzv.sqrt() * torch.from_numpy(cells["z_noise"]))
    library, kl_library = None, torch.zeros(len(batch))
    if model.settings.has_latent_library:
        qlm, qlv = model.encode_library(batch)
        library = (qlm + qlv.sqrt() * torch.from_numpy(cells["library_noise"])).exp()
        kl_library = kl_of_normals(qlm, qlv, *model.library_prior(batch.codes, len(batch)))
    return model.reconstruction(batch, z, library), kl_of_normals(qzm, qzv).sum(1), kl_library


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parents[2] / "golden" / "losses.npz") as file:
        return dict(file)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_losses_and_gradients_are_those_of_scvi_tools(likelihood: str, golden: dict[str, np.ndarray]):
    """scvi-tools adds 1e-8 inside its logarithms and we do not, so the last digits differ."""
    cells = make_cells()
    for case in (name for name in CASES if name.startswith(likelihood)):
        setup, options = CASES[case]
        settings = settings_of(setup, options, cells)
        theirs = to_scvi_weights(VAE(settings, torch.Generator().manual_seed(0)))
        shapes = "\n".join(sorted(f"{name} {tuple(tensor.shape)}" for name, tensor in theirs.items()))
        assert zlib.crc32(shapes.encode()) == golden[f"{case}/shapes"], case
        model = from_scvi_weights({name: make_weights(name, tuple(t.shape)) for name, t in theirs.items()}, settings)
        batch = batch_of(setup, cells)
        with torch.no_grad():
            terms = torch.stack(plain_terms(model, batch, cells))
        np.testing.assert_allclose(terms, golden[f"{case}/terms"], rtol=1e-4, atol=1e-4, err_msg=case)
        model.train()
        reconstruction, kl, kl_library = plain_terms(model, batch, cells)
        loss = (reconstruction + 0.7 * kl + kl_library).mean()
        loss.backward()
        for parameter in model.parameters():  # as weights, so that they are translated as those are
            assert parameter.grad is not None, case
            parameter.data = parameter.grad
        gradients = to_scvi_weights(model)
        buffers = ("running_", "num_batches", "library_log")
        names = sorted(name for name in gradients if not any(part in name for part in buffers))
        norms = golden[f"{case}/loss"][1:].tolist()
        for name, norm in zip(names, norms, strict=True):
            ours = 0.0 if torch.equal(gradients[name], theirs[name]) else gradients[name].norm().item()
            assert ours == pytest.approx(norm, rel=1e-3, abs=1e-4 + 1e-6 * max(norms)), (case, name)
        assert loss.item() == pytest.approx(golden[f"{case}/loss"][0], rel=1e-4), case


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_combination_computes_in_float64_what_it_computes_in_float32(likelihood: str):
    """float64 is plain torch, float32 our kernels."""
    cells = make_cells()
    cells["counts"] = cells["counts"].clip(max=20)  # raw counts in the hundreds overflow a latent library
    for number, case in enumerate(name for name in CASES if name.startswith(likelihood)):
        setup, options = CASES[case]
        settings, batch = settings_of(setup, options, cells), batch_of(setup, cells)
        narrow, wide = (VAE(settings, torch.Generator().manual_seed(number)) for _ in range(2))
        losses = []
        for model in (narrow, wide.double()):
            terms = plain_terms(model.train(), batch, cells)
            losses.append((terms[0] + terms[1] + terms[2]).mean())
            losses[-1].backward()
        assert [loss.dtype for loss in losses] == [torch.float32, torch.float64], case
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5), case
        gradients = [[parameter.grad for parameter in model.parameters()] for model in (narrow, wide)]
        largest = max(exact.norm() for exact in gradients[1])  # a bias before batch norm has none
        for ours, exact in zip(*gradients, strict=True):
            assert (ours - exact).norm() <= 1e-5 * largest, case


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_combination_trains_and_comes_back_from_disk_and_from_scvi_tools_layout(likelihood: str, tmp_path: Path):
    cells = make_cells()
    cells["counts"] = cells["counts"].clip(max=20)  # raw counts in the hundreds overflow a latent library, there too
    for number, case in enumerate(name for name in CASES if name.startswith(likelihood)):
        setup, options = CASES[case]
        settings = settings_of(setup, {**options, "dropout_rate": 0.1}, cells)
        generator = torch.Generator().manual_seed(number)
        model, batch = VAE(settings, generator).train(), batch_of(setup, cells)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
        losses = []
        for _ in range(4):
            terms = model(batch, torch.Generator().manual_seed(number))  # the same noise in each step
            loss = (terms.reconstruction + terms.kl + terms.kl_library).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            assert all(parameter.grad is not None for parameter in model.parameters()), case
            optimizer.step()
            losses.append(loss.item())
        assert all(map(math.isfinite, losses)), case
        assert losses[-1] < losses[0], case
        model.eval()
        copies = [from_scvi_weights(to_scvi_weights(model), settings)]
        if number % 8 == 0:  # a disk that flushes takes its time
            folder = tmp_path / str(number)
            folder.mkdir()
            write_json(folder / "result.json", {})
            TrainedRun(model, [f"g{k}" for k in range(N_GENES)]).save(folder)
            copies.append(load_run(folder).model)
        for again in copies:
            assert again.settings == settings, case
            found = again.state_dict()
            assert all(torch.equal(found[name], values) for name, values in model.state_dict().items()), case
            with torch.no_grad():
                for ours, theirs in zip(plain_terms(model, batch, cells), plain_terms(again, batch, cells)):
                    assert torch.equal(ours, theirs), case


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    """Forty cells with every kind of covariate, in an h5ad."""
    cells = make_cells()
    columns = ("batch", "labels", "donor", "same", "sex", "age", "score", "factor")
    obs = pd.DataFrame({name: np.tile(cells[name], 2) for name in columns}, index=[f"c{k}" for k in range(2 * N_CELLS)])
    var = pd.DataFrame(index=[f"g{k}" for k in range(N_GENES)])
    anndata.AnnData(np.tile(cells["counts"], (2, 1)), obs, var).write_h5ad(tmp_path / "atlas.h5ad")
    return tmp_path / "atlas.h5ad"


RUNS = [
    *(f"{likelihood} gene-batch observed all" for likelihood in LIKELIHOODS),
    "zinb gene-label latent all",
    "nb gene-cell latent embedded",
    "normal gene latent batch",
    "poisson gene factor embedded",
    "zinb gene-cell factor all",
    "nb gene-label observed none",
]


@pytest.mark.parametrize("case", RUNS)
def test_a_run_over_options_and_covariates_goes_from_counts_to_scvi_tools_and_back(case: str, atlas: Path):
    """Through the trainer, the run directory, minify, and a directory of scvi-tools: the same posterior everywhere."""
    setup, options = CASES[case]
    settings = {**options, "n_hidden": 8, "n_latent": 4, "batch_size": 13, "validation_fraction": 0.2}
    run = train(atlas, atlas.with_name("run"), **setup, epochs=2, settings=settings)
    assert all(math.isfinite(run.result[part]["elbo"]) for part in ("train", "validation"))
    save_scvi_tools(run, atlas.with_name("theirs"))
    expected = None
    for place in ("run", "theirs"):
        again = open_model(atlas.with_name(place))
        assert again.setup == run.setup
        assert again.model.settings == run.model.settings
        minify(atlas.with_name(place), atlas, atlas.with_name(f"{place}.mini"), batch_size=16)
        store = MinifiedStore(atlas.with_name(f"{place}.mini"))
        values = np.concatenate([*store.read_latent(0, 40), *(part for _, part in read_expression(store))], axis=1)
        assert np.isfinite(values).all()
        assert expected is None or np.array_equal(values, expected)
        expected = values
