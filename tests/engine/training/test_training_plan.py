"""How a run is led: optimizer, KL warm-up, learning rate, stopping, and a run that goes on from another."""

import json
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from atlasvi.engine.distributed.signals import TrainingInterrupted
from atlasvi.engine.minified.minify import minify
from atlasvi.engine.model.library_prior import measure_library
from atlasvi.engine.scvi_tools.model_directories import save_scvi_tools
from atlasvi.engine.training.checkpoint_files import read_newest_checkpoint
from atlasvi.engine.training.epoch_estimate import plan_epoch_time
from atlasvi.engine.training.map_onto import map_onto
from atlasvi.engine.training.settings import SettingError
from atlasvi.engine.training.train import train
from atlasvi.engine.training.training_loop import Trainer
from atlasvi.loaders.cells.open_cells import open_cells
from atlasvi.loaders.errors import SourceError
from tests.engine.scvi_tools.test_model_directories import MODELS

TINY = {"n_hidden": 8, "n_latent": 3, "n_layers": 1, "batch_size": 10, "keep": "last", "validation_fraction": 0.2}


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Sixty cells of two batches, in an h5ad; the genes are those of the golden models."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"batch": list("ab") * 30, "age": rng.normal(size=60)}, index=[f"c{k}" for k in range(60)])
    counts = rng.poisson(1.0 + (np.arange(60) % 2)[:, None], (60, 30)).astype(np.float32)
    var = pd.DataFrame(index=[f"g{k}" for k in range(30)])
    anndata.AnnData(counts, obs, var).write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def run_epochs(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "epoch"]


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    return read_newest_checkpoint(out / "checkpoints")[1]["weights"]


def train_tiny(cells: Path, name: str, epochs: int = 2, *, start: Any = None, **settings: Any) -> Path:
    out = cells.with_name(name)
    keys = {} if start is not None else {"batch_key": "batch"}
    train(cells, out, **keys, start=start, epochs=epochs, settings={**TINY, **settings})
    return out


@pytest.mark.parametrize("norms", [{}, {"use_batch_norm": "both", "dropout_rate": 0.3}])
def test_a_run_that_goes_on_from_another_ends_as_one_run_of_both_lengths(cells: Path, norms: dict[str, Any]):
    """Optimizer, order of cells, noise, dropout and KL warm-up included."""
    long = train_tiny(cells, "long", 4, kl_warmup_epochs=3, **norms)
    first = train_tiny(cells, "first", 2, kl_warmup_epochs=3, **norms)
    second = train_tiny(cells, "second", 2, start=first, kl_warmup_epochs=3)
    for (name, ours), theirs in zip(weights_of(second).items(), weights_of(long).values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert [line["epoch"] for line in run_epochs(second)] == [0, 1, 2, 3]
    assert [line["kl_weight"] for line in run_epochs(second)] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert not any(
        torch.equal(a, b) for a, b in zip(weights_of(first).values(), weights_of(second).values()) if a.dim()
    )


def test_a_run_that_goes_on_from_another_can_itself_be_resumed(cells: Path, monkeypatch: pytest.MonkeyPatch):
    first = train_tiny(cells, "first")
    whole = train_tiny(cells, "whole", 3, start=first)
    end_epoch = Trainer._end_epoch

    def stop(self: Trainer, kl_weight: float) -> None:
        end_epoch(self, kl_weight)
        if self.state.epoch == 4:
            raise TrainingInterrupted("here")

    monkeypatch.setattr(Trainer, "_end_epoch", stop)
    with pytest.raises(TrainingInterrupted, match="here"):
        train_tiny(cells, "broken", 3, start=first)
    monkeypatch.undo()
    train(cells, cells.with_name("broken"), resume=True)
    assert all(map(torch.equal, weights_of(cells.with_name("broken")).values(), weights_of(whole).values()))


def test_data_with_more_genes_is_seen_through_those_of_the_model(cells: Path):
    first, data = train_tiny(cells, "first", 1), anndata.read_h5ad(cells)
    wide = anndata.concat([data, anndata.AnnData(data.X[:, :3], data.obs, pd.DataFrame(index=list("xyz")))], axis=1)
    wide.obs = data.obs
    wide[:, ::-1].copy().write_h5ad(cells.with_name("wide.h5ad"))
    outs = [train_tiny(each, each.stem + "run", start=first) for each in (cells, cells.with_name("wide.h5ad"))]
    ours, theirs = (weights_of(out) for out in outs)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in ours)
    (outs[1] / "model.pt").unlink()
    train(cells.with_name("wide.h5ad"), outs[1], resume=True)
    assert (outs[1] / "model.pt").is_file()


def test_a_model_of_scvi_tools_is_trained_further_on_its_columns(cells: Path):
    run = train(cells, cells.with_name("run"), batch_key="batch", epochs=1, settings=TINY)
    save_scvi_tools(run, cells.with_name("theirs"))
    again = train(
        cells, cells.with_name("again"), start=cells.with_name("theirs"), epochs=1, settings={"batch_size": 10}
    )
    assert again.setup == run.setup
    assert again.model.settings == run.model.settings
    assert again.result["steps"] == 6
    plain = train(cells, cells.with_name("plain"), start=MODELS / "plain", epochs=1)
    assert plain.model.settings.use_batch_norm == "both"


def test_an_anndata_in_memory_is_refused_with_the_way_to_train_it(cells: Path, tmp_path: Path):
    adata = anndata.read_h5ad(cells)
    for call in (
        lambda: train(adata, tmp_path / "run"),
        lambda: minify(MODELS / "plain", adata, tmp_path / "mini"),
        lambda: map_onto(MODELS / "plain", adata, tmp_path / "run"),
        lambda: plan_epoch_time(adata, 1),
    ):
        with pytest.raises(
            SourceError, match=r"The data is of type AnnData: give the path .* by atlasvi\.engine\.SCVI"
        ):
            call()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"settings": {"n_latent": 7}}, "has n_latent = 3, not 7"),
        ({"batch_key": "age"}, "has batch_key = 'batch', not 'age'"),
        ({"continuous_covariate_keys": ["age"]}, r"has continuous_covariate_keys = None, not \['age'\]"),
    ],
)
def test_a_model_to_start_from_keeps_its_shape(cells: Path, asked: dict[str, Any], message: str):
    first = train_tiny(cells, "first", 1)
    with pytest.raises(SettingError, match=message):
        train(cells, cells.with_name("second"), start=first, epochs=1, **asked)
    assert not cells.with_name("second").exists()


def test_the_kl_weight_may_rise_by_steps(cells: Path):
    out = train_tiny(cells, "run", 3, kl_warmup_steps=8, min_kl_weight=0.2, max_kl_weight=0.6)
    steps = run_epochs(out)[0]["step"]
    expected = [0.2 + 0.4 * min((steps * (epoch + 1) - 1) / 8, 1) for epoch in range(3)]
    assert [line["kl_weight"] for line in run_epochs(out)] == pytest.approx(expected)


def test_the_learning_rate_falls_on_a_plateau_and_comes_back_on_resume(cells: Path):
    settings = {"reduce_lr_on_plateau": True, "lr_patience": 0, "lr_threshold": 1e6, "lr_factor": 0.5, "lr_min": 2e-4}
    out = train_tiny(cells, "run", 5, lr_scheduler_metric="reconstruction_loss_train", **settings)
    assert [line["learning_rate"] for line in run_epochs(out)] == pytest.approx([1e-3, 1e-3, 5e-4, 2.5e-4, 2e-4])


@pytest.mark.parametrize("monitor", ["train_kl", "elbo_validation"])
def test_a_run_stops_when_any_metric_has_not_improved(cells: Path, monitor: str):
    settings = {"early_stopping_monitor": monitor, "early_stopping_patience": 2, "early_stopping_min_delta": 1e6}
    out = train_tiny(cells, "run", 9, early_stopping_warmup_epochs=1, **settings)
    assert len(run_epochs(out)) == 4  # one not looked at, the best, two that were no better
    result = json.loads((out / "result.json").read_text())
    assert result["stopped_early"]


@pytest.mark.parametrize("value", ["loss", "validation_loss"])
def test_a_metric_that_is_not_logged_is_refused(cells: Path, value: str):
    with pytest.raises(SettingError, match=rf"early_stopping_monitor = '{value}': there is no metric .*train_elbo"):
        train_tiny(cells, "run", early_stopping_monitor=value)
    with pytest.raises(SettingError, match=r"min_kl_weight 2\.0 is above max_kl_weight 1\.0"):
        train_tiny(cells, "run", min_kl_weight=2.0)


def test_adamw_decouples_the_decay(cells: Path):
    outs = [train_tiny(cells, name, optimizer=name, weight_decay=0.5) for name in ("Adam", "AdamW")]
    first, second = (weights_of(out)["decoder.logits.weight"] for out in outs)
    assert not torch.equal(first, second)


def test_a_last_minibatch_of_one_cell_trains_under_batch_norm(cells: Path):
    out = train_tiny(cells, "run", batch_size=59, validation_fraction=0.0, use_batch_norm="both")
    assert all(np.isfinite(line["train_elbo"]) for line in run_epochs(out))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights_of(out).values())


def test_the_prior_of_a_latent_library_is_that_of_each_batch(cells: Path):
    data = anndata.read_h5ad(cells)
    logs, batch = np.log(data.X.sum(1)), (data.obs["batch"] == "b").to_numpy().astype(int)
    means, variances = measure_library(open_cells(cells), batch, 3)
    for k in range(2):
        assert means[k] == pytest.approx(logs[batch == k].mean(), rel=1e-6)
        assert variances[k] == pytest.approx(logs[batch == k].var(), rel=1e-4)
    assert (means[2], variances[2]) == (0, 1)
    run = train(
        cells, cells.with_name("run"), batch_key="batch", epochs=1, settings={**TINY, "use_observed_lib_size": False}
    )
    assert run.model.library_log_means.tolist() == means[:2].tolist()
