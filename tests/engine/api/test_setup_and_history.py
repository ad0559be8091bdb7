"""What a model says of itself by scvi-tools' names, and what its users meet when something ends early."""

import os
import signal

import numpy as np
import pytest
import torch

from atlasvi.engine import SCVI
from atlasvi.engine.cli.checking import DamageError, check
from atlasvi.engine.distributed.signals import TrainingInterrupted
from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.engine.training.settings import SettingError
from atlasvi.engine.training.training_error import TrainingError
from atlasvi.engine.training.training_loop import Trainer
from atlasvi.loaders.errors import GeneError, OutputError, SourceError
from tests.engine.api.small_models import make_adata, make_model


@pytest.fixture(scope="module")
def model() -> SCVI:
    return make_model(make_adata(), epochs=1)


def test_the_setup_is_told_by_scvi_tools_names(model: SCVI, tmp_path, capsys):
    assert (model.summary_stats.n_cells, model.summary_stats["n_vars"], model.summary_stats.n_batch) == (180, 40, 2)
    assert model.summary_stats.n_extra_categorical_covs == 0
    with pytest.raises(AttributeError, match="there is no 'n_cels'"):
        _ = model.summary_stats.n_cels
    assert model.registry_["model_name"] == "SCVI"
    assert model.get_setup_arg("batch_key") == "batch"
    with pytest.raises(SettingError, match="no argument 'batch'"):
        model.get_setup_arg("batch")
    model.save(tmp_path / "model", prefix="a_")
    registry = SCVI.load_registry(tmp_path / "model", prefix="a_")
    assert registry["setup_args"] == model.registry_["setup_args"]
    SCVI.view_setup_args(tmp_path / "model", prefix="a_")
    assert "batch_key: 'batch'" in capsys.readouterr().out
    model.view_anndata_setup(hide_state_registries=True)
    assert "batch: obs column 'batch', 2 categories\n" in capsys.readouterr().out
    model.view_anndata_setup(make_adata(30))
    assert "30 cells" in capsys.readouterr().out
    with pytest.raises(GeneError):
        model.view_anndata_setup(make_adata(30)[:, :5].copy())


def test_the_history_has_the_losses_of_training():
    model = make_model(make_adata())
    model.train(3, check_val_every_n_epoch=1, plan_kwargs={"n_epochs_kl_warmup": 10})
    history = model.history
    assert {"train_loss", "validation_loss", "kl_global_train", "kl_global_validation"} <= set(history)
    for part in ("train", "validation"):
        reconstruction, kl = (history[f"{name}_{part}"].iloc[-3:] for name in ("reconstruction_loss", "kl_local"))
        weight = np.array([0.3, 0.4, 0.5])  # epochs 3 to 5 of a warm-up over 10
        expected = reconstruction.to_numpy()[:, 0] + weight * kl.to_numpy()[:, 0]
        np.testing.assert_allclose(history[f"{part}_loss"].iloc[-3:].to_numpy()[:, 0], expected, rtol=1e-6)
        assert (history[f"kl_global_{part}"] == 0).all(axis=None)
    model.train(1, plan_kwargs={"n_epochs_kl_warmup": None, "n_steps_kl_warmup": 100})
    assert len(model.history["train_loss"]) == len(model.history["elbo_train"]) - 1


def test_an_interrupted_training_keeps_the_weights_and_the_history(monkeypatch: pytest.MonkeyPatch):
    model = make_model(make_adata())
    before = model.module.log_theta.detach().clone()
    real = Trainer._end_epoch

    def interrupt(self: Trainer, kl_weight: float) -> None:
        real(self, kl_weight)
        if self.state.epoch == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "_end_epoch", interrupt)
    with pytest.raises(TrainingInterrupted, match=r"stopped by SIGINT.*keeps the weights.*run_dir=") as stopped:
        model.train(30)
    assert "/" not in str(stopped.value)
    monkeypatch.undo()
    assert not torch.equal(model.module.log_theta, before)
    assert len(model.history["elbo_train"]) == 5
    model.train(1)
    assert len(model.history["elbo_train"]) == 6


def test_an_interrupted_run_says_in_words_of_python_how_to_go_on(tmp_path, monkeypatch: pytest.MonkeyPatch):
    adata = make_adata()
    SCVI.setup_anndata(adata, batch_key="batch")
    model, real = SCVI(adata, n_hidden=8), Trainer._end_epoch

    def interrupt(self: Trainer, kl_weight: float) -> None:
        real(self, kl_weight)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "_end_epoch", interrupt)
    with pytest.raises(TrainingInterrupted, match="pass resume=True to resume the run"):
        model.train(2, run_dir=tmp_path / "run")
    assert model.is_trained
    monkeypatch.undo()
    model.train(2, run_dir=tmp_path / "run", resume=True)
    assert len(model.history["elbo_train"]) == 2


def test_a_loss_that_is_not_finite_leaves_the_last_good_weights():
    adata = make_adata()
    SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata, n_hidden=8)
    before = model.module.log_theta.detach().clone()
    with pytest.raises(
        TrainingError, match=r"not finite.*The model is as it was before.*lower learning rate"
    ) as failed:
        model.train(3, batch_size=64, plan_kwargs={"lr": 1e10})
    assert "/" not in str(failed.value)
    assert torch.equal(model.module.log_theta, before)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.module.parameters())


def test_no_epoch_and_no_validation_cells_are_fine_unless_they_are_to_be_watched():
    model = make_model(make_adata(100))
    before = model.module.log_theta.detach().clone()
    model.train(0, train_size=0.5)
    assert torch.equal(model.module.log_theta, before)
    assert len(model.train_indices) == 50
    model.train(1, train_size=0.5, validation_size=0.0)
    assert (len(model.train_indices), len(model.validation_indices), len(model.test_indices)) == (50, 0, 50)
    with pytest.raises(SettingError, match="early_stopping watches validation_elbo, and no cell is held out"):
        model.train(1, train_size=1.0, early_stopping=True)
    with pytest.raises(SettingError, match="reduce_lr_on_plateau watches validation_elbo"):
        model.train(1, train_size=1.0, plan_kwargs={"reduce_lr_on_plateau": True})
    model.train(1, train_size=1.0, early_stopping=True, early_stopping_monitor="elbo_train")
    with pytest.raises(QueryError, match="no cell was chosen"):
        model.get_elbo(indices=model.validation_indices)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"datasplitter_kwargs": {"drop_last": True}}, r"datasplitter_kwargs\['drop_last'\]"),
        ({"callbacks": [object()]}, "callbacks"),
        ({"logger": object(), "devices": 2}, "logger, devices"),
    ],
)
def test_arguments_without_effect_are_warned_of(model: SCVI, arguments: dict, named: str):
    with pytest.warns(UserWarning, match=f"{named} have no effect here;"):
        model.train(0, **arguments)


def test_a_model_is_saved_where_one_stands(model: SCVI, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    model.save(".", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["atlasvi.json", "atlasvi.pt", "model.pt"]
    assert SCVI.load(".").run.genes == model.run.genes
    (tmp_path / "file").write_text("a file")
    with pytest.raises(OutputError, match="exists already"):
        model.save("file", overwrite=True)


def test_the_split_is_read_from_what_scvi_tools_reads_it_from(model: SCVI, tmp_path):
    model.save(tmp_path / "model")
    (tmp_path / "model" / "atlasvi.pt").unlink()  # scvi-tools writes none: its model.pt holds the split
    with pytest.warns(UserWarning, match=r"atlasvi\.pt is missing, which was saved with the model"):
        loaded = SCVI.load(tmp_path / "model", model.adata)
    assert np.array_equal(loaded.validation_indices, model.validation_indices)
    assert np.array_equal(loaded.train_indices, model.train_indices)


def test_a_flipped_bit_of_the_data_beside_a_model_is_noticed(model: SCVI, tmp_path):
    folder = tmp_path / "model"
    model.save(folder, save_anndata=True)
    data, whole = folder / "adata.h5ad", (folder / "adata.h5ad").read_bytes()
    data.write_bytes(whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:])
    with pytest.raises(SourceError, match=r"adata\.h5ad is damaged: it does not match the checksum in atlasvi\.json"):
        SCVI.load(folder)
    with pytest.raises(DamageError, match=r"1 problem, the first: .*adata\.h5ad is damaged"):
        list(check(folder))
    assert SCVI.load(folder, model.adata).run.state is not None  # other data is asked for
    list(check(folder, renew=True))
    data.write_bytes(whole)
    list(check(folder, renew=True))
    assert np.array_equal(SCVI.load(folder).get_latent_representation(), model.get_latent_representation())


def test_what_was_saved_with_a_model_that_another_has_replaced_is_not_read(model: SCVI, tmp_path):
    other = make_model(make_adata(60, seed=3), epochs=1)
    model.save(tmp_path / "model")
    other.save(tmp_path / "other")
    (tmp_path / "other" / "model.pt").replace(tmp_path / "model" / "model.pt")  # as scvi-tools saves over ours
    with pytest.warns(UserWarning, match=r"model\.pt was written after atlasvi\.json"):
        loaded = SCVI.load(tmp_path / "model", other.adata)
    assert loaded.run.state is None
    assert np.array_equal(loaded.validation_indices, other.validation_indices)


def test_a_minified_store_is_a_model_with_its_data(model: SCVI, tmp_path):
    minified = SCVI.load(_save(model, tmp_path), model.adata)
    minified.minify(tmp_path / "x.mini")
    opened = SCVI.load(tmp_path / "x.mini")
    assert np.array_equal(opened.get_latent_representation(), model.get_latent_representation())
    assert opened.get_normalized_expression(indices=[3, 1]).shape == (2, 40)
    assert opened.minified_data_type == "latent_posterior_parameters"
    with pytest.raises(QueryError, match="needs the counts"):
        opened.get_elbo()
    full = SCVI.load(tmp_path / "x.mini", model.adata)
    assert full.get_elbo(return_mean=False).shape == (180,)


def _save(model: SCVI, folder) -> str:
    model.save(folder / "model")
    return str(folder / "model")


def test_query_data_is_set_up_by_being_loaded(model: SCVI):
    query = make_adata(60, seed=1, batches="xy")
    SCVI.load_query_data(query, model)
    own = SCVI(query, n_hidden=8)
    assert own.run.setup.keys.batch_key == "batch"
    assert own.run.setup.batch_categories == ["x", "y"]


@pytest.mark.parametrize("given", ["softplus", torch.nn.Softplus(), torch.nn.functional.softplus])
def test_the_variance_is_made_positive_as_asked(given, tmp_path):
    adata = make_adata(50)
    SCVI.setup_anndata(adata, batch_key="batch")
    plain, model = SCVI(adata, n_hidden=8), SCVI(adata, n_hidden=8, var_activation=given)
    plain.is_trained = model.is_trained = True
    exponents = (torch.from_numpy(plain.get_latent_representation(return_dist=True)[1]) - 1e-4).log()
    expected = torch.nn.functional.softplus(exponents) + 1e-4
    np.testing.assert_allclose(model.get_latent_representation(return_dist=True)[1], expected, rtol=1e-4)
    model.save(tmp_path / "model")
    loaded = SCVI.load(tmp_path / "model", adata)
    assert loaded.module.settings.var_activation == "softplus"
    for got, kept in zip(*(each.get_latent_representation(return_dist=True) for each in (loaded, model)), strict=True):
        assert np.array_equal(got, kept)
    with pytest.raises(ValueError, match=r"var_activation .*beta=2.* is not supported: exp and softplus are"):
        SCVI(adata, var_activation=torch.nn.Softplus(beta=2))


def test_small_mistakes_are_said_in_a_sentence(model: SCVI):
    adata = model.adata
    for ask in (
        lambda: model.get_latent_representation(indices=adata.obs_names[:3]),
        lambda: model.differential_expression(idx1=list(adata.obs_names[:10])),
    ):
        with pytest.raises(QueryError, match="by their indices or by a mask"):
            ask()
    with pytest.raises(QueryError, match="group2 is one group"):
        model.differential_expression(groupby="cell_type", group1="B", group2=["T", "NK"])
    with pytest.raises(SettingError, match="did you mean n_samples_overall"):
        model.differential_expression(groupby="cell_type", n_samples=100)
    with pytest.raises(QueryError, match="library_size 'observed'"):
        model.get_normalized_expression(library_size="observed")
    for question in (model.get_elbo, model.get_normalized_expression, model.get_marginal_ll):
        with pytest.raises(QueryError, match="no cell was chosen"):
            question(indices=[])
    twice = make_adata(10)
    twice.var_names = ["g0", "g0", *(f"g{k}" for k in range(2, 40))]
    with pytest.raises(GeneError, match="more than once"):
        SCVI.prepare_query_anndata(twice, model, inplace=False)


@pytest.mark.filterwarnings("ignore:the AnnData.*genes of the model are in the data")
def test_a_query_without_x_is_prepared_by_its_layers(model: SCVI):
    query = make_adata(30, seed=2)[:, 3:].copy()
    query.layers["counts"], expected = query.X.copy(), query.X.sum()
    query.X = None
    prepared = SCVI.prepare_query_anndata(query, model, inplace=False)
    assert prepared.X is None
    assert prepared.var_names.tolist() == model.run.genes
    assert prepared.layers["counts"].sum() == expected


def test_a_category_without_cells_is_no_group_and_passes_are_bounded(monkeypatch: pytest.MonkeyPatch):
    from atlasvi.engine.queries import differential

    adata = make_adata()
    adata.obs["group"] = adata.obs["cell_type"].cat.add_categories(["gone"])
    model = make_model(adata, epochs=1)
    asked: dict = {"groupby": "group", "mode": "change", "n_samples_overall": 400}
    whole, passes, real = model.differential_expression(**asked), [], differential.count_statistics

    def count(*args):
        passes.append(args[-1])
        return real(*args)

    monkeypatch.setattr(differential, "PASS_BYTES", 1)
    monkeypatch.setattr(differential, "count_statistics", count)
    parts = model.differential_expression(**asked)
    assert passes == [2, 2, 2]  # sums of a group and of the rest
    assert parts["group1"].unique().tolist() == ["B", "NK", "T"]
    one, other = (table.reset_index().set_index(["group1", "index"]).sort_index() for table in (whole, parts))
    for name in ("raw_mean1", "raw_mean2", "non_zeros_proportion1", "raw_normalized_mean2"):
        np.testing.assert_allclose(other[name], one[name])
    cells = np.asarray(adata.X[(adata.obs["group"] == "B").to_numpy()].mean(0)).ravel()
    np.testing.assert_allclose(parts[parts["group1"] == "B"].loc[adata.var_names, "raw_mean1"], cells, rtol=1e-5)
    np.testing.assert_allclose(other["lfc_mean"], one["lfc_mean"], atol=0.3)  # other draws
