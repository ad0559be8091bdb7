"""New data onto an old model: what is held, what learns, what is appended."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from atlasvi.engine import SCVI
from atlasvi.engine.model.model_options import Freezing
from atlasvi.engine.training.freezing import choose_trained
from atlasvi.engine.training.query_mapping import keeps_latents
from atlasvi.engine.training.settings import SettingError
from atlasvi.loaders.errors import GeneError
from atlasvi.loaders.ingestion.ingest import ingest
from tests.engine.api.small_models import make_adata, make_model

ARCHES = {"use_layer_norm": "both", "use_batch_norm": "none", "encode_covariates": True, "n_layers": 2}


def test_latents_of_the_reference_stay_to_the_bit_while_new_batches_are_learned(tmp_path):
    """Out of core, with covariates in the encoder and weight decay, which must not move what is held."""
    reference = make_model(make_adata(), **ARCHES)
    make_adata(120, seed=1, batches="bcd").write_h5ad(tmp_path / "query.h5ad")
    ingest([tmp_path / "query.h5ad"], tmp_path / "query")
    query = SCVI.load_query(SCVI.prepare_query(tmp_path / "query", reference), reference)
    assert query.run.setup.batch_categories == ["a", "b", "c", "d"]
    assert not query.is_trained
    before = query.module.encoder.first.batch.detach().clone()
    query.train(max_epochs=3, plan_kwargs={"weight_decay": 0.1, "lr": 0.01})
    after = query.module.encoder.first.batch
    assert torch.equal(after[:2], before[:2])
    assert not torch.equal(after[2:], before[2:])
    assert np.array_equal(query.get_latent_representation(reference.adata), reference.get_latent_representation())
    old, new = reference.module.state_dict(), query.module.state_dict()
    moved = {name for name in old if not torch.equal(old[name], new[name][: len(old[name])])}
    assert moved == {"decoder.layers.0.batch", "decoder.layers.1.batch"}


@pytest.mark.parametrize(
    ("options", "freezing", "learned"),
    [
        ({}, {}, {"decoder.layers.0.batch", "decoder.layers.0.norm.weight", "decoder.layers.0.norm.bias"}),
        ({}, {"freeze_batchnorm_decoder": True}, {"decoder.layers.0.batch"}),
        (
            {"use_batch_norm": "none"},
            {"freeze_decoder_first_layer": False},
            {"decoder.layers.0.weight", "decoder.layers.0.bias", "decoder.layers.0.batch"},
        ),
        (
            {"use_batch_norm": "encoder"},
            {"freeze_expression": False},
            {"encoder.first.weight", "encoder.first.bias", "decoder.layers.0.batch"},
        ),
        (
            {"use_batch_norm": "encoder"},
            {"freeze_batchnorm_encoder": False},
            {"encoder.first.norm.weight", "encoder.first.norm.bias", "decoder.layers.0.batch"},
        ),
        (
            {"use_batch_norm": "none", "batch_representation": "embedding"},
            {"freeze_batchnorm_decoder": True},
            {"batch_embedding"},
        ),
    ],
)
def test_what_learns_is_what_scvi_tools_lets_learn(options: dict, freezing: dict, learned: set):
    adata = make_adata(30)
    SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata, n_hidden=8, **options).module
    assert set(choose_trained(model, Freezing(**freezing))) == learned


def test_a_latent_library_keeps_the_priors_of_known_batches_and_measures_new_ones():
    reference = make_model(make_adata(), use_observed_lib_size=False)
    query = SCVI.load_query_data(make_adata(80, seed=1, batches="ac"), reference)
    means = query.module.library_log_means
    assert torch.equal(means[:2], reference.module.library_log_means)
    assert means[2] > 0
    query.train(max_epochs=1)
    assert np.array_equal(query.get_latent_representation(reference.adata), reference.get_latent_representation())


@pytest.mark.parametrize("inplace", [True, False])
def test_genes_are_put_in_order_and_missing_ones_count_zero(inplace: bool):
    reference, query = make_model(make_adata()), make_adata(20, seed=1)[:, [5, 3, 9, 1]].copy()
    query.var_names = ["g5", "g3", "other", "g1"]
    query.obsm["X"] = np.ones((20, 2))
    expected = {gene: query[:, gene].X.toarray() for gene in ("g1", "g3", "g5")}
    with pytest.warns(UserWarning, match=r"7\.5% of the 40 genes"):
        got = SCVI.prepare_query_anndata(query, reference, inplace=inplace)
    got = query if inplace else got
    assert got.var_names.tolist() == reference.run.genes
    assert got.obs.columns.tolist() == make_adata(5).obs.columns.tolist()
    assert got.obsm["X"].shape == (20, 2)
    assert got.X.sum() == sum(values.sum() for values in expected.values())
    for gene, values in expected.items():
        assert np.array_equal(got[:, gene].X.toarray(), values)
    with pytest.raises(GeneError, match="none of the 40 genes"):
        SCVI.prepare_query_anndata(anndata.AnnData(np.ones((2, 1), np.float32)), reference)


def test_a_query_goes_on_learning_what_it_may_and_is_saved_as_any_model(tmp_path):
    reference = make_model(make_adata(), **ARCHES)
    query = SCVI.load_query_data(make_adata(80, seed=1, batches="xy"), reference)
    query.train(max_epochs=1)
    query.train(max_epochs=1)
    assert len(query.history["elbo_train"]) == 2
    assert np.array_equal(query.get_latent_representation(reference.adata), reference.get_latent_representation())
    query.save(tmp_path / "query")
    assert SCVI.load(tmp_path / "query").run.setup.batch_categories == ["a", "b", "x", "y"]


@pytest.mark.parametrize(
    ("kind", "new", "categories"),
    [
        (np.array([1, 2]), "unassigned", [1, 2, "unassigned"]),
        (np.array([0.5, 1.5], np.float32), "unassigned", [0.5, 1.5, "unassigned"]),
        (np.array([False, True]), "unassigned", [False, True, "unassigned"]),
        (pd.array([1, 2], "Int64"), 2.0, [1, 2]),
        (np.array([1, 2]), 3.0, [1, 2, 3.0]),
        (np.array([1, 2]), "2", [1, 2]),
        (np.array([0.1, 2], np.float32), np.float32(0.1), [float(np.float32(0.1)), 2]),
        (np.array(["a", "b"], object), 3, ["a", "b", 3]),
        (pd.array([False, True], "boolean"), True, [False, True]),
        (pd.to_datetime(["2020-01-01", "2021-01-01"]), "late", ["2020-01-01 00:00:00", "2021-01-01 00:00:00", "late"]),
        (pd.cut([1, 2], [0, 1, 2]), "old", ["(0, 1]", "(1, 2]", "old"]),
    ],
)
def test_a_query_whose_batches_are_of_another_type_is_kept_and_loads_as_it_was(tmp_path, kind, new, categories):
    data, more = make_adata(60), make_adata(20, seed=1)
    data.obs["batch"] = pd.Series(kind).take([0, 1] * 30).array
    SCVI.setup_anndata(data, batch_key="batch")
    reference = SCVI(data, n_hidden=8, n_latent=2)
    reference.is_trained = True
    reference.save(tmp_path / "reference")
    loaded = SCVI.load(tmp_path / "reference", data)
    assert loaded.run.setup == reference.run.setup
    assert np.array_equal(loaded.get_latent_representation(), reference.get_latent_representation())
    more.obs["batch"] = np.full(20, new)
    query = SCVI.load_query_data(more, loaded)
    query.is_trained = True
    query.save(tmp_path / "query")
    again = SCVI.load(tmp_path / "query", more)
    assert again.run.setup.batch_categories == categories
    assert np.array_equal(again.get_latent_representation(), query.get_latent_representation())
    for batch in (new, categories[0]):
        assert again.get_normalized_expression(transform_batch=batch, gene_list=["g0"]).shape == (20, 1)


def test_a_query_without_a_column_that_the_model_takes_is_refused_when_it_is_loaded():
    reference = make_adata(60)
    SCVI.setup_anndata(reference, batch_key="batch", continuous_covariate_keys=["percent_mito"])
    query = make_adata(20, seed=1)
    del query.obs["percent_mito"]
    with pytest.raises(KeyError, match="no column 'percent_mito'"):
        SCVI.load_query_data(query, SCVI(reference, n_hidden=8))


def test_all_learns_where_nothing_is_frozen_and_nothing_to_learn_is_said():
    adata = make_adata(60)
    SCVI.setup_anndata(adata)
    plain = SCVI(adata, n_hidden=8, use_batch_norm="none")
    with pytest.raises(SettingError, match="use it as it is"):
        SCVI.load_query_data(make_adata(40, seed=1), plain).train(max_epochs=1)
    query = SCVI.load_query_data(make_adata(40, seed=1), plain, unfrozen=True)
    query.train(max_epochs=1)
    assert not torch.equal(query.module.encoder.mean.weight, plain.module.encoder.mean.weight)


def test_a_query_of_one_batch_learns_its_column_though_the_layers_are_normalised():
    """By the mean of its minibatches the norm would take out what the column adds to all of its cells alike."""
    reference = make_model(make_adata(), encode_covariates=True, use_batch_norm="both")
    query = SCVI.load_query_data(make_adata(80, seed=1, batches="z"), reference)
    before = {name: tensor.clone() for name, tensor in query.module.state_dict().items()}
    query.train(max_epochs=2, plan_kwargs={"lr": 0.01})
    after = query.module.state_dict()
    for name in ("encoder.first.batch", "decoder.layers.0.batch"):
        assert (after[name][2] - before[name][2]).abs().max() > 1e-3
    statistics = [name for name in before if "running" in name]
    assert len(statistics) == 4
    assert all(torch.equal(after[name], before[name]) for name in statistics)
    assert np.array_equal(query.get_latent_representation(reference.adata), reference.get_latent_representation())


@pytest.mark.parametrize("representation", ["one-hot", "embedding"])
def test_latents_are_kept_by_a_mapped_model_and_by_no_other(representation: str):
    options = {**ARCHES, "batch_representation": representation}
    reference = make_model(make_adata(), **options)
    query = SCVI.load_query_data(make_adata(80, seed=1, batches="bc"), reference)
    query.train(max_epochs=1)
    assert keeps_latents(reference.run, query.run)
    assert keeps_latents(reference.run, reference.run)
    assert not keeps_latents(query.run, reference.run)
    other = make_model(make_adata(seed=2), **options)
    assert not keeps_latents(reference.run, other.run)
    free = SCVI.load_query_data(make_adata(80, seed=1, batches="bc"), reference, freeze_expression=False)
    free.train(max_epochs=1)
    assert not keeps_latents(reference.run, free.run)


def test_latents_are_kept_where_a_covariate_of_one_category_gets_another():
    adata = make_adata(60)
    adata.obs["site"] = "here"
    SCVI.setup_anndata(adata, batch_key="batch", categorical_covariate_keys=["site"])
    reference = SCVI(adata, n_hidden=8, **{**ARCHES, "use_batch_norm": "none"})
    new = make_adata(40, seed=1)
    new.obs["site"] = "there"
    query = SCVI.load_query_data(new, reference)
    query.train(max_epochs=1)
    assert keeps_latents(reference.run, query.run)
