"""The sequence of scvi-tools' user guide, and what else its users do, with our SCVI."""

import os
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
from scipy import sparse

from atlasvi.engine import SCVI
from atlasvi.engine.minified.minified_store import is_minified_store
from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.engine.training.settings import SettingError
from atlasvi.loaders.errors import ColumnError, CountsError, GeneError
from atlasvi.loaders.ingestion.ingest import ingest
from tests.engine.api.small_models import make_adata, make_model


def test_the_user_guide_runs_line_for_line(tmp_path: Path):
    """Set up, train, latent, expression, differential expression, save, load, minify, map a query."""
    adata, adata_query = make_adata(), make_adata(90, seed=1, batches="cd")[:, ::-1].copy()
    adata_query.layers["counts"] = adata_query.X.copy()
    save_dir = str(tmp_path)

    adata.layers["counts"] = adata.X.copy()  # preserve counts
    adata.X = np.log1p(adata.X)
    adata.raw = adata  # freeze the state in `.raw`
    SCVI.setup_anndata(
        adata,
        layer="counts",
        batch_key="batch",
        categorical_covariate_keys=["donor"],
        continuous_covariate_keys=["percent_mito"],
    )
    model = SCVI(adata)
    assert "Not Trained" in repr(model)
    model.train(max_epochs=2)
    assert "Training status: Trained" in repr(model)
    assert len(model.history["elbo_train"]) == 2
    model_dir = os.path.join(save_dir, "scvi_model")
    model.save(model_dir, overwrite=True)
    model = SCVI.load(model_dir, adata=adata)
    SCVI_LATENT_KEY = "X_scVI"
    latent = model.get_latent_representation()
    adata.obsm[SCVI_LATENT_KEY] = latent
    assert latent.shape == (adata.n_obs, 10)
    adata_subset = adata[adata.obs.cell_type == "B"]
    latent_subset = model.get_latent_representation(adata_subset)
    np.testing.assert_allclose(latent_subset, latent[adata.obs.cell_type == "B"], atol=1e-5)
    denoised = model.get_normalized_expression(adata_subset, library_size=1e4)
    assert denoised.shape == adata_subset.shape
    assert np.allclose(denoised.sum(1), 1e4, rtol=1e-4)
    SCVI_NORMALIZED_KEY = "scvi_normalized"
    adata.layers[SCVI_NORMALIZED_KEY] = model.get_normalized_expression(library_size=10e4)
    de_df = model.differential_expression(groupby="cell_type", group1="B", group2="T")
    assert de_df["comparison"].eq("B vs T").all()
    de_df = model.differential_expression(groupby="cell_type", mode="change", delta=0.25, fdr_target=0.05)
    cats = adata.obs.cell_type.cat.categories
    for c in cats:
        cell_type_df = de_df.loc[de_df.comparison == f"{c} vs Rest"]
        cell_type_df = cell_type_df[cell_type_df.lfc_mean > -1e9]
        assert len(cell_type_df) == adata.n_vars
    model.view_anndata_setup(adata_subset)

    qzm, qzv = model.get_latent_representation(give_mean=False, return_dist=True)
    model.adata.obsm["X_latent_qzm"] = qzm
    model.adata.obsm["X_latent_qzv"] = qzv
    model.minify_adata()
    assert model.minified_data_type == "latent_posterior_parameters"
    assert model.adata.layers["counts"].nnz == 0
    model.save(model_dir, overwrite=True, save_anndata=True)
    model = SCVI.load(model_dir)
    assert np.array_equal(model.get_latent_representation(), latent)

    scvi_ref_path = model_dir
    with pytest.warns(UserWarning, match=r"95\.0% of the 40 genes"):
        SCVI.prepare_query_anndata(adata_query := adata_query[:, 2:].copy(), scvi_ref_path)
    scvi_query = SCVI.load_query_data(adata_query, scvi_ref_path)
    scvi_query.train(max_epochs=2, plan_kwargs={"weight_decay": 0.0})
    adata_query.obsm[SCVI_LATENT_KEY] = scvi_query.get_latent_representation()
    adata_full = anndata.concat([adata_query, adata])
    full = scvi_query.get_latent_representation(adata_full)
    np.testing.assert_allclose(full[len(adata_query) :], latent, atol=1e-5)


@pytest.mark.parametrize("kind", ["csr", "csc", "dense", "store", "h5ad"])
def test_data_of_every_kind_is_asked_alike(kind: str, adata: anndata.AnnData, model: SCVI, tmp_path: Path):
    other, order = adata.copy(), np.arange(adata.n_obs)
    if kind == "csc":
        other.X = sparse.csc_matrix(other.X)
    if kind == "dense":
        other.X = other.X.toarray()
    asked = other
    if kind in ("store", "h5ad"):
        del other.uns["_atlasvi_setup"]
        other.write_h5ad(tmp_path / "cells.h5ad")
        asked = tmp_path / "cells.h5ad"
    if kind == "store":
        ingest([asked], tmp_path / "store")
        asked = str(tmp_path / "store")
        order = SCVI.load(_saved(model, tmp_path), asked).ask().read_column("source_row").to_numpy()
    got = model.get_latent_representation(asked)
    np.testing.assert_allclose(got, model.get_latent_representation()[order], atol=1e-5)
    losses = model.get_reconstruction_error(asked, return_mean=False)["reconstruction_loss"]
    assert losses.shape == (adata.n_obs,)
    assert losses.mean() == pytest.approx(model.get_reconstruction_error()["reconstruction_loss"].item(), rel=0.05)


def _saved(model: SCVI, folder: Path) -> Path:
    model.save(folder / "model")
    return folder / "model"


def test_a_store_is_trained_saved_minified_and_asked_out_of_core(adata: anndata.AnnData, tmp_path: Path):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    ingest([tmp_path / "cells.h5ad"], tmp_path / "store")
    model = SCVI(tmp_path / "store", batch_key="batch", labels_key="cell_type", n_hidden=16, n_latent=4)
    model.train(max_epochs=2, run_dir=tmp_path / "run", train_size=0.8, check_val_every_n_epoch=1)
    assert len(model.history["elbo_validation"]) == 2
    assert sorted(map(len, (model.train_indices, model.validation_indices))) == [36, 144]
    before = model.get_latent_representation()
    model.save(tmp_path / "model")
    full = model.differential_expression(groupby="cell_type", mode="change")
    model.minify(tmp_path / "mini")
    assert is_minified_store(tmp_path / "mini")
    again = SCVI.load(tmp_path / "model", tmp_path / "mini")
    assert np.array_equal(again.get_latent_representation(), before)
    with pytest.warns(UserWarning, match="minified data has no counts"):
        small = again.differential_expression(groupby="cell_type", mode="change")
    assert list(small.columns) == list(full.columns)
    assert small["raw_mean1"].isna().all()
    for question in (again.get_elbo, again.get_marginal_ll, again.get_reconstruction_error):
        with pytest.raises(QueryError, match="needs the counts"):
            question()


def test_training_goes_on_with_its_optimizer_and_its_count_of_epochs_also_after_loading(tmp_path: Path):
    adata = make_adata(120)
    once, twice = make_model(adata), make_model(adata)
    twice.save(tmp_path / "model")
    twice = SCVI.load(tmp_path / "model", adata)
    for model in (once, twice):
        model.train(max_epochs=2, batch_size=64, plan_kwargs={"n_epochs_kl_warmup": None, "lr": 0.01})
    assert once.history["elbo_train"].index.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(once.module.log_theta, twice.module.log_theta)
    assert once.run.state["step"] == 5 * 2


def test_defaults_are_those_of_scvi_tools(adata: anndata.AnnData):
    SCVI.setup_anndata(adata, batch_key="batch")
    settings = SCVI(adata).module.settings
    assert (settings.n_hidden, settings.n_latent, settings.n_layers, settings.dropout_rate) == (128, 10, 1, 0.1)
    assert (settings.gene_likelihood, settings.dispersion, settings.use_batch_norm) == ("zinb", "gene", "both")
    assert not settings.encode_covariates


def test_validation_is_measured_as_often_as_asked_and_early_stopping_stops(adata: anndata.AnnData):
    model = make_model(adata)
    assert "elbo_validation" not in model.history
    model.train(max_epochs=4, check_val_every_n_epoch=2)
    assert len(model.history["elbo_validation"]) == 2
    model.train(max_epochs=60, early_stopping=True, early_stopping_patience=1, early_stopping_min_delta=1e6)
    assert len(model.history["elbo_train"]) < 20


def test_draws_are_those_of_the_seed_and_differ_from_call_to_call(adata: anndata.AnnData, tmp_path: Path):
    model = make_model(adata)
    model.save(tmp_path / "model")
    one, two = (SCVI.load(tmp_path / "model", adata, seed=3) for _ in range(2))
    first = one.get_latent_representation(give_mean=False)
    assert np.array_equal(first, two.get_latent_representation(give_mean=False))
    assert not np.array_equal(first, one.get_latent_representation(give_mean=False))


def test_one_batch_is_enough_to_set_up(tmp_path: Path):
    model = make_model(make_adata(80, batches="a"))
    query = make_adata(60, seed=1, batches="xy")
    mapped = SCVI.load_query_data(query, model)
    before = model.get_latent_representation()
    mapped.train(max_epochs=2)
    assert np.array_equal(mapped.get_latent_representation(model.adata), before)
    assert mapped.run.setup.batch_categories == ["a", "x", "y"]


def test_what_is_wrong_is_said_in_a_sentence(adata: anndata.AnnData, model: SCVI, tmp_path: Path):
    fresh = make_adata(30)
    with pytest.raises(SettingError, match="not set up"):
        SCVI(fresh)
    with pytest.raises(ColumnError, match="no column 'nothing'"):
        SCVI.setup_anndata(fresh, batch_key="nothing")
    with pytest.raises(ColumnError, match="no layer 'nothing'"):
        SCVI.setup_anndata(fresh, layer="nothing")
    with pytest.raises(SettingError, match="n_hiden"):
        SCVI(adata, n_hiden=3)
    with pytest.raises(SettingError, match="did you mean lr"):
        model.train(plan_kwargs={"lrr": 1})
    with pytest.raises(GeneError, match="not there"):
        model.get_latent_representation(adata[:, :20].copy())
    with pytest.raises(QueryError, match="no batch 'z'"):
        model.get_normalized_expression(transform_batch="z")
    fresh.X = fresh.X * 0.5
    SCVI.setup_anndata(fresh)
    with pytest.raises(CountsError, match="not whole numbers"):
        SCVI(fresh)


def test_the_recipe_atlas_fits_a_new_model_to_a_sample_and_leaves_a_trained_one_as_it_is():
    losses = {}
    for weights in ("random", "sample"):
        adata = make_adata()
        SCVI.setup_anndata(adata, batch_key="batch")
        model = SCVI(adata, n_hidden=16, n_latent=4)
        plan = {"recipe": "atlas", "initial_weights": weights, "lr": 0.0}  # no step changes anything
        model.train(max_epochs=1, plan_kwargs=plan)
        losses[weights] = float(model.history["elbo_train"].iloc[0, 0])
    assert losses["sample"] < losses["random"]
    before = [parameter.detach().clone() for parameter in model.run.model.parameters()]
    model.train(max_epochs=1, plan_kwargs=plan)
    assert all(torch.equal(old, new) for old, new in zip(before, model.run.model.parameters(), strict=True))
