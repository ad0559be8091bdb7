"""An AnnData in memory goes on changing after the model was made: the cells that it has now are asked."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from atlasvi.engine import SCVI
from atlasvi.loaders.errors import ColumnError, CountsError, GeneError
from tests.engine.api.small_models import make_adata, make_model


@pytest.fixture
def model() -> SCVI:
    return make_model(make_adata(), epochs=1)


def test_columns_that_were_added_since_are_found(model: SCVI):
    adata = model.adata
    adata.obs["leiden"] = pd.Categorical((np.arange(adata.n_obs) % 3).astype(str))
    for asked in (None, adata):
        table = model.differential_expression(asked, groupby="leiden", mode="change", n_samples_overall=50)
        assert table["group1"].unique().tolist() == ["0", "1", "2"]
    assert model.differential_expression(idx1="leiden == '1'", n_samples_overall=50).shape[0] == adata.n_vars
    assert model.differential_abundance(sample_key="leiden").columns.tolist() == ["0", "1", "2"]
    model.minify_adata()
    model.adata.obs["again"] = adata.obs["leiden"]
    table = model.differential_expression(groupby="again", mode="change", all_stats=False, n_samples_overall=50)
    assert table["group1"].unique().tolist() == ["0", "1", "2"]


@pytest.mark.parametrize("kind", ["csr", "dense", "layer"])
def test_cells_are_those_that_the_anndata_has_now(kind: str):
    adata, layer = make_adata(), None
    if kind == "dense":
        adata.X = adata.X.toarray()
    if kind == "layer":
        layer = "counts"
        adata.layers[layer], adata.X = adata.X, None
    SCVI.setup_anndata(adata, layer=layer, batch_key="batch")
    model = SCVI(adata, n_hidden=8, n_latent=3)
    model.is_trained = True
    before = model.get_latent_representation()
    order = np.random.default_rng(1).permutation(adata.n_obs)[:70]
    adata._inplace_subset_obs(order)  # what scanpy's filters in place call
    np.testing.assert_allclose(model.get_latent_representation(), before[order], atol=1e-5)
    np.testing.assert_allclose(model.get_latent_representation(adata), before[order], atol=1e-5)
    counts = adata.X if layer is None else adata.layers[layer]
    table = model.get_normalized_expression(library_size="latent")
    assert table.index.tolist() == adata.obs_names.tolist()
    np.testing.assert_allclose(table.sum(1), np.asarray(counts.sum(1)).ravel(), rtol=1e-3)


def test_counts_that_were_replaced_or_changed_in_place_are_read_again(model: SCVI):
    other = make_adata(seed=5)
    expected = model.get_latent_representation(other)
    model.adata.X = other.X.copy()
    model.adata.obs["batch"] = other.obs["batch"].to_numpy()
    assert np.array_equal(model.get_latent_representation(), expected)
    model.adata.X.data[:] = 1
    changed = model.get_latent_representation()
    assert not np.array_equal(changed, expected)
    assert np.array_equal(changed, model.get_latent_representation(model.adata.copy()))


def test_what_the_anndata_no_longer_holds_is_said(model: SCVI):
    adata = model.adata
    kept = adata.X.copy()
    adata.X = np.log1p(kept)
    with pytest.raises(CountsError, match=r"not whole numbers.* changed after the model was made"):
        model.get_latent_representation()
    adata.X = kept
    assert model.get_latent_representation().shape == (adata.n_obs, 4)
    batches = adata.obs.pop("batch")
    with pytest.raises(ColumnError, match="no column 'batch'"):
        model.get_latent_representation()
    adata.obs["batch"] = batches
    adata._inplace_subset_var(np.arange(30))
    with pytest.raises(GeneError, match="10 of the 40 genes"):
        model.get_latent_representation()


def test_genes_that_change_places_are_found_by_name(model: SCVI):
    before = model.get_latent_representation()
    model.adata._inplace_subset_var(np.arange(40)[::-1])
    np.testing.assert_allclose(model.get_latent_representation(), before, atol=1e-5)


def test_other_data_can_be_given_to_a_model(model: SCVI, tmp_path):
    other = make_adata(70, seed=5)
    expected = model.get_latent_representation(other)
    model.adata = other
    assert model.adata is other
    assert np.array_equal(model.get_latent_representation(), expected)
    other.write_h5ad(tmp_path / "other.h5ad")
    model.adata = tmp_path / "other.h5ad"
    assert model.adata is None
    np.testing.assert_allclose(model.get_latent_representation(), expected, atol=1e-5)
    with pytest.raises(GeneError):
        model.adata = other[:, :10].copy()
    without = make_adata(20)
    del without.obs["batch"]
    with pytest.raises(KeyError, match="no column 'batch'"):  # what scvi-tools raises
        model.adata = without
    assert model.get_latent_representation().shape == (70, 4)  # nothing has changed


def test_the_held_out_cells_are_followed_through_filters_and_new_orders(model: SCVI):
    adata = model.adata
    held_out = adata.obs_names[model.validation_indices]
    adata._inplace_subset_obs(np.random.default_rng(1).permutation(adata.n_obs)[:100])
    now = adata.obs_names[model.validation_indices]
    assert set(now) == set(held_out) & set(adata.obs_names)
    assert len(model.train_indices) + len(now) == 100


def test_training_goes_on_with_the_cells_that_are_there_now(model: SCVI):
    model.adata._inplace_subset_obs(np.arange(50))
    model.train(1)
    assert len(model.train_indices) + len(model.validation_indices) == 50


def test_minified_data_is_known_by_its_latents_where_concat_dropped_uns(model: SCVI):
    expected = model.get_latent_representation()
    full = model.adata
    model.minify_adata()
    halves = [model.adata[:100].copy(), model.adata[100:].copy()]
    joined = anndata.concat(halves)
    assert not joined.uns
    assert np.array_equal(model.get_latent_representation(joined), expected)
    both = [model.adata, make_adata(80, seed=1)]
    with pytest.raises(ValueError, match=r"minified.* 80 cells have no latents \(first: 'c1_0'\)"):
        model.get_latent_representation(anndata.concat(both, join="outer", uns_merge="first"))
    with pytest.raises(ValueError, match="obs column 'observed_lib_size' shows that they had"):
        model.get_latent_representation(anndata.concat(both, join="outer"))
    with pytest.warns(UserWarning, match="180 cells have no counts"):  # nothing is left that tells them apart
        model.get_latent_representation(anndata.concat(both, join="inner"))
    model.adata = full
    assert np.array_equal(model.get_latent_representation(), expected)


def test_minified_data_of_another_model_is_refused(model: SCVI, tmp_path):
    other = make_model(make_adata(60, seed=2)[:, :30].copy(), epochs=1)
    other.minify_adata()
    wider = make_model(make_adata(60, seed=2), epochs=1, n_latent=6)
    wider.minify_adata()
    wider.adata.write_h5ad(tmp_path / "wider.h5ad")
    with pytest.raises(ValueError, match="the model has 40 and 4, whose gene 'g30' is missing"):
        model.get_latent_representation(other.adata)
    for asked in (wider.adata, tmp_path / "wider.h5ad"):
        with pytest.raises(ValueError, match="40 genes and 6 latent dimensions, the model has 40 and 4"):
            model.get_latent_representation(asked)


def test_a_folder_of_the_hub_is_opened_by_the_names_of_older_versions(model: SCVI, tmp_path):
    expected = model.get_latent_representation()
    model.minify_adata()
    mini = model.adata
    for part in ("qzm", "qzv"):
        mini.obsm[f"_scvi_latent_{part}"] = mini.obsm.pop(f"scvi_latent_{part}")
    mini.obs = mini.obs.rename(columns={"observed_lib_size": "_scvi_observed_lib_size"})
    model.save(tmp_path / "hub")
    mini.write_h5ad(tmp_path / "hub" / "adata.h5ad")
    loaded = SCVI.load(tmp_path / "hub")
    assert np.array_equal(loaded.get_latent_representation(), expected)
    assert loaded.get_normalized_expression(library_size="latent").shape == mini.shape


def test_empty_matrices_and_no_cells(model: SCVI):
    assert model.get_latent_representation(model.adata[:0].copy()).shape == (0, 4)
    empty = make_adata(3)
    empty.X = sparse.csr_matrix(empty.shape, dtype=np.float32)
    with pytest.warns(UserWarning, match="3 cells have no counts"):
        assert model.get_latent_representation(empty).shape == (3, 4)
