"""The sequence of scvi-tools' user guide, and what else its users do, with our SCVI."""

import os
import shutil
import warnings
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from atlasvi.engine import SCVI
from atlasvi.engine.minified.minified_store import is_minified_store
from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.engine.training.settings import SettingError
from atlasvi.loaders import outputs
from atlasvi.loaders.errors import AtlasviWarning, ColumnError, CountsError, GeneError, OutputError, SourceError
from atlasvi.loaders.ingestion.ingest import ingest

N_GENES = 40


def make_adata(n_cells: int = 180, seed: int = 0, batches: str = "ab") -> anndata.AnnData:
    """Three types of cells, each with eight genes of its own, in some batches."""
    rng = np.random.default_rng(seed)
    types = rng.integers(3, size=n_cells)
    rates = np.ones((3, N_GENES))
    for kind in range(3):
        rates[kind, 8 * kind : 8 * kind + 8] = 12
    counts = rng.poisson(rates[types] * rng.gamma(5, 0.2, (n_cells, 1))).astype(np.float32)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(np.array(["B", "NK", "T"])[types]),
            "batch": pd.Categorical(rng.choice(list(batches), n_cells)),
            "donor": rng.integers(2, size=n_cells),
            "percent_mito": rng.random(n_cells).astype(np.float32),
        },
        index=[f"c{seed}_{k}" for k in range(n_cells)],
    )
    return anndata.AnnData(sparse.csr_matrix(counts), obs, pd.DataFrame(index=[f"g{k}" for k in range(N_GENES)]))


def make_model(adata: anndata.AnnData, epochs: int = 3, **options) -> SCVI:
    SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata, **{"n_hidden": 16, "n_latent": 4, "gene_likelihood": "nb", **options})
    model.train(max_epochs=epochs, batch_size=64, plan_kwargs={"n_epochs_kl_warmup": None, "lr": 0.01})
    return model


@pytest.fixture(scope="module")
def adata() -> anndata.AnnData:
    return make_adata()


@pytest.fixture(scope="module")
def model(adata: anndata.AnnData) -> SCVI:
    return make_model(adata)


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


def test_a_model_is_not_overwritten_unless_asked(model: SCVI, tmp_path: Path):
    model.save(tmp_path / "model", prefix="a_")
    with pytest.raises(OutputError, match="exists already"):
        model.save(tmp_path / "model")
    model.save(tmp_path / "model", overwrite=True)
    assert {"a_model.pt", "model.pt"} <= {file.name for file in (tmp_path / "model").iterdir()}
    assert SCVI.load(tmp_path / "model", prefix="a_").run.genes == model.run.genes


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


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("obsp", lambda node: node.attrs.update({"encoding-type": ["batch"]}), r"adata.h5ad: it is damaged"),
        ("obs/batch", lambda node: node.__delitem__("codes"), r"adata.h5ad: it is damaged"),
        ("X", lambda node: node.__setitem__("data", h5py.ExternalLink("/etc/passwd", "x")), "lies in another file"),
    ],
)
def test_damage_of_the_data_that_was_saved_with_a_model_is_said_in_a_sentence(
    adata: anndata.AnnData, tmp_path: Path, name: str, change, said: str
):
    make_model(adata).save(tmp_path / "model", save_anndata=True)
    with h5py.File(tmp_path / "model/adata.h5ad", "r+") as file:
        if name == "X":
            del file["X/data"]
        change(file[name])
    (tmp_path / "model/atlasvi.json").unlink()  # its checksums, as a model saved by scvi-tools has none
    with pytest.raises(SourceError, match=said):
        SCVI.load(tmp_path / "model")


def read_weight(model: SCVI) -> torch.Tensor:
    return next(iter(model.run.model.state_dict().values()))


def test_a_process_killed_while_it_replaces_a_model_leaves_one_that_is_loaded_and_saved_again(
    adata: anndata.AnnData, model: SCVI, tmp_path: Path, monkeypatch
):
    make_model(adata, epochs=1).save(tmp_path / "old", save_anndata=True)
    rename, names = os.rename, ["model.pt", "atlasvi.pt", "adata.h5ad", "atlasvi.json"]

    for kill_at in range(len(names)):
        folder, renamed = tmp_path / str(kill_at), list[str]()
        shutil.copytree(tmp_path / "old", folder)

        def kill(made: Path, out: Path, folder=folder, renamed=renamed, kill_at=kill_at) -> None:
            if Path(out).parent == folder:
                renamed.append(Path(out).name)
            if len(renamed) > kill_at:
                raise SystemExit
            rename(made, out)

        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(os, "rename", kill)
            patch.setattr(outputs, "_remove", lambda path: None)  # a process that is killed tidies nothing up
            model.save(folder, overwrite=True, save_anndata=True)
        assert renamed == names[: kill_at + 1]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            loaded = SCVI.load(folder)
        if kill_at == 0:
            assert torch.equal(read_weight(loaded), read_weight(SCVI.load(tmp_path / "old")))
            assert loaded.run.state["epoch"] == 1
        else:
            assert torch.equal(read_weight(loaded), read_weight(model))
            assert loaded.run.state is None
            assert any("was written after" in str(warning.message) for warning in said)
        model.save(folder, overwrite=True, save_anndata=True)
        assert SCVI.load(folder).run.state["epoch"] == 3


@pytest.mark.parametrize("left", [".new", "..new.unfinished"])
def test_nothing_that_lies_in_a_models_folder_keeps_it_from_being_saved_again(model: SCVI, tmp_path: Path, left: str):
    folder = tmp_path / "model"
    model.save(folder)
    (folder / left).symlink_to(tmp_path / "elsewhere")  # these names earlier versions took for what is not finished
    model.save(folder, overwrite=True)
    kept, saved = (each.run.model.state_dict() for each in (SCVI.load(folder), model))
    assert all(torch.equal(kept[name], weight) for name, weight in saved.items())


def test_a_model_is_not_saved_where_a_folder_has_the_name_of_a_file(model: SCVI, tmp_path: Path):
    (tmp_path / "model" / "model.pt").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"model.pt is a folder, and a file must be written there"):
        model.save(tmp_path / "model", overwrite=True)
    assert os.listdir(tmp_path / "model") == ["model.pt"]


def test_the_data_of_another_model_is_not_left_beside_a_saved_one(adata: anndata.AnnData, tmp_path: Path):
    model, folder = make_model(adata, epochs=1), tmp_path / "model"
    make_model(make_adata(30), epochs=1).save(folder, save_anndata=True)
    with pytest.raises(OutputError, match=r"adata.h5ad is there, and load would take it for the data of this model"):
        model.save(folder, overwrite=True)
    model.save(folder, overwrite=True, save_anndata=True)
    model.save(folder, overwrite=True)  # what is there is its own data
    loaded = SCVI.load(folder)
    loaded.save(folder, overwrite=True)
    assert SCVI.load(folder).adata.n_obs == adata.n_obs
    loaded.adata._inplace_subset_obs(np.arange(20))
    with pytest.raises(OutputError, match="load would take it"):
        loaded.save(folder, overwrite=True)
    with pytest.raises(OutputError, match="load would take it"):
        SCVI.load(folder, adata).save(folder, overwrite=True)
    shutil.copy(folder / "adata.h5ad", tmp_path / "by-hand.h5ad")
    model.save(tmp_path / "hub")
    (tmp_path / "by-hand.h5ad").rename(tmp_path / "hub" / "adata.h5ad")
    SCVI.load(tmp_path / "hub").save(tmp_path / "hub", overwrite=True)
    assert SCVI.load(tmp_path / "hub").adata.n_obs == adata.n_obs


def test_data_that_was_saved_with_a_model_is_not_that_of_one_that_scvi_tools_saved_over_it(
    adata: anndata.AnnData, tmp_path: Path
):
    make_model(make_adata(30), epochs=1).save(tmp_path / "model", save_anndata=True)
    model = make_model(adata, epochs=1)
    model.save(tmp_path / "other", save_anndata=True)
    shutil.copy(tmp_path / "other" / "model.pt", tmp_path / "model")
    with pytest.warns(AtlasviWarning, match=r"not read: .*adata.h5ad"):
        assert SCVI.load(tmp_path / "model").adata is None
    shutil.copy(tmp_path / "other" / "adata.h5ad", tmp_path / "model")  # scvi-tools saved its data too
    with pytest.warns(AtlasviWarning, match=r"not read: atlasvi.pt"):
        assert SCVI.load(tmp_path / "model").adata.n_obs == adata.n_obs


def test_a_model_is_not_saved_over_a_run_or_under_a_name_elsewhere(model: SCVI, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(OutputError, match="is a run or a store, which a model can't be saved over"):
        model.save(tmp_path / "run", overwrite=True)
    with pytest.raises(OutputError, match=r"prefix '\.\./a' is a part of a path"):
        model.save(tmp_path / "model", prefix="../a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
